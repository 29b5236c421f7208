"""Attention over one or two segments of keys, with grouped key/value heads.

Rows are left-aligned, so a causal mask alone is right where a row is attended to by itself: padding
lies to the right and no valid token sees it. A group of rollouts shares its prompt's keys: the two
segments (prompt, completion) meet in one softmax and the prompt is never repeated.

Axes: P prompts, m rollouts of each, T and S time, N query heads, K key heads, G = N / K, H width.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

AttentionKind = Literal["auto", "xla", "cudnn"]

# Finite: a row of padding that may attend to nothing stays finite, and its gradient too.
MASKED = -1e30


def causal_attention(
  query: Float[Array, "B T N H"],
  key: Float[Array, "B T K H"],
  value: Float[Array, "B T K H"],
  *,
  lengths: Int[Array, "B"] | None = None,
  sliding_window: int | None = None,
  kind: AttentionKind = "auto",
) -> Float[Array, "B T N H"]:
  """Softmax attention of each row to its own past, float32 softmax.

  Args:
    query, key, value: one segment, left-aligned.
    lengths: valid tokens of each row; only cuDNN uses it, to skip padding.
    sliding_window: keys a query may look back on, itself included.
    kind: `"cudnn"` on GPU in half precision, `"xla"` anywhere, `"auto"` chooses.

  Returns:
    Attended values; what stands on padding means nothing.
  """
  if kind == "auto":
    half = query.dtype in (jnp.bfloat16, jnp.float16)
    gpu = jax.default_backend() == "gpu"
    kind = "cudnn" if gpu and half and query.shape[-1] % 8 == 0 <= 128 - query.shape[-1] else "xla"
  if kind == "cudnn":
    window = None if sliding_window is None else (sliding_window - 1, 0)
    return jax.nn.dot_product_attention(
      query,
      key,
      value,
      is_causal=True,
      query_seq_lengths=lengths,
      key_value_seq_lengths=lengths,
      local_window_size=window,
      implementation="cudnn",
    )
  positions = jnp.arange(query.shape[1])
  visible = visible_keys(positions, positions, sliding_window)
  return segment_attention(query, [(key, value, visible[None])])


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


def segment_attention(
  query: Float[Array, "B T N H"],
  segments: list[tuple[Array, Array, Array]],
) -> Float[Array, "B T N H"]:
  """Attention over several segments of keys in one softmax.

  Args:
    query: `[B, T, N, H]`.
    segments: (key `[b, S, K, H]`, value `[b, S, K, H]`, visible `[1 or B, T, S]`) each, where b
      divides B: a segment of b < B rows is shared by the B / b neighbouring rows of the query.

  Returns:
    `[B, T, N, H]` in the dtype of the query.
  """
  batch, time, heads, width = query.shape
  kv_heads = segments[0][0].shape[2]
  query = query.reshape(batch, time, kv_heads, heads // kv_heads, width)
  scores = []
  for key, _, visible in segments:
    shared = query.reshape(key.shape[0], -1, *query.shape[1:])
    score = jnp.einsum("bmtkgh,bskh->bmkgts", shared, key, preferred_element_type=jnp.float32)
    score = score.reshape(batch, *score.shape[2:]) * width**-0.5
    scores.append(jnp.where(visible[:, None, None], score, MASKED))
  peak = jax.lax.stop_gradient(jnp.max(jnp.stack([s.max(-1) for s in scores]), axis=0))
  weights = [jnp.exp(score - peak[..., None]) for score in scores]
  total = sum(weight.sum(-1) for weight in weights)
  attended = 0.0
  for weight, (_, value, _) in zip(weights, segments, strict=True):
    weight = (weight / total[..., None]).astype(query.dtype)
    shared = weight.reshape(value.shape[0], -1, *weight.shape[1:])
    part = jnp.einsum("bmkgts,bskh->bmtkgh", shared, value)
    attended = attended + part.reshape(batch, time, heads, width)
  return attended
