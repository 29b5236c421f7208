"""Which keys a query may see."""

from __future__ import annotations

from jaxtyping import Array, Bool, Int


def visible_keys(
  query_positions: Int[Array, "*batch T"],
  key_positions: Int[Array, "*batch S"],
  sliding_window: int | None,
) -> Bool[Array, "*batch T S"]:
  """True where a query may see a key: not in its future, not beyond the window."""
  distance = query_positions[..., :, None] - key_positions[..., None, :]
  visible = distance >= 0
  if sliding_window is not None:
    visible &= distance < sliding_window
  return visible
