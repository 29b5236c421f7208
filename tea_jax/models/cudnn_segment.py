"""Attention to one segment of keys by cuDNN, with the log-sum-exp that joins it to others.

No GPU has run this yet: the tests give the same calls to the library's XLA implementation.

Axes: B rows, T queries, S keys, N query heads, K key heads, H width.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# Widths of heads must be multiples of this.
_WIDTH_STEP = 8


def cudnn_takes(dtype: Any, width: int, *, widest: int = 128) -> bool:
  """Whether cuDNN's attention takes a dtype and a width of heads: on GPU, in half precision."""
  half = dtype in (jnp.bfloat16, jnp.float16)
  fits = width % _WIDTH_STEP == 0 and width <= widest
  return jax.default_backend() == "gpu" and half and fits


def cudnn_segment_takes(dtype: Any, width: int) -> bool:
  """Whether `cudnn_segment` can be called; it needs heads that are 8 wider than the model's."""
  # jax 0.8.0 has no residual.
  if "return_residual" not in inspect.signature(jax.nn.dot_product_attention).parameters:
    return False
  capability = str(getattr(jax.local_devices()[0], "compute_capability", "")).split(".")[0]
  hopper = capability.isdigit() and int(capability) >= 9
  return cudnn_takes(dtype, width + _WIDTH_STEP, widest=256 if hopper else 128)


def cudnn_segment(
  query: Float[Array, "B T N H"],
  key: Float[Array, "B S K H"],
  value: Float[Array, "B S K H"],
  lengths: Int[Array, "B"] | None = None,
  *,
  causal: bool = False,
  implementation: Literal["cudnn", "xla"] = "cudnn",
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T N"]]:
  """Values and float32 log-sum-exp of the scores of one segment; no gradient is defined.

  The library rounds the log-sum-exp to the dtype of the query, in bfloat16 by up to 0.03 at 10, and
  each segment's share of the softmax by 3 %. So it is called twice: all scores of a query are
  lowered by the first, rounded answer c, and what is then left, log-sum-exp - c, is next to 0 and
  rounded by next to nothing. The shift is one more feature: -c / scale of the query, 1 of each key.

  Args:
    query, key, value: in half precision.
    lengths: keys of each row that are not padding; None for all. Rows may have none.
    causal: query t sees the keys 0 to t only.
    implementation: of `jax.nn.dot_product_attention`; "xla" builds all scores and is for tests.

  Returns:
    `[B, T, N, H]` in the query's dtype and `[B, T, N]`: 0 and -inf where no key is visible.
  """
  scale = query.shape[-1] ** -0.5
  attend = functools.partial(
    jax.nn.dot_product_attention,
    scale=scale,
    is_causal=causal,
    key_value_seq_lengths=None if lengths is None else lengths.astype(jnp.int32),
    implementation=implementation,
    return_residual=True,
  )
  _, rounded = attend(query, key, value)
  shift = (-rounded.astype(jnp.float32) / scale).astype(query.dtype)
  attended, rest = attend(
    _widened(query, shift), _widened(key, jnp.ones_like(key[..., 0])), _widened(value, None)
  )
  log_total = rest.astype(jnp.float32) - scale * shift.astype(jnp.float32)
  attended = attended[..., : query.shape[-1]]
  if lengths is None:
    return attended, log_total
  some = (lengths > 0)[:, None, None]
  return jnp.where(some[..., None], attended, 0), jnp.where(some, log_total, -jnp.inf)


def _widened(x: Array, feature: Array | None) -> Array:
  """`x` with one more feature, and zeros up to the next legal width."""
  features = jnp.zeros((*x.shape[:-1], _WIDTH_STEP), x.dtype)
  if feature is not None:
    features = features.at[..., 0].set(feature.astype(x.dtype))
  return jnp.concatenate([x, features], axis=-1)
