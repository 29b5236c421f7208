"""Attention to one segment of keys by JAX's splash kernel for TPUs, with its log-sum-exp.

No TPU has run this yet: tests interpret the kernel on a CPU and lower it for TPU.

Axes: B rows, T queries, S keys, N query heads, K key heads, H width.
"""

from __future__ import annotations

import importlib.util

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

_LIBRARY = "jax.experimental.pallas.ops.tpu.splash_attention"
_BLOCK = 128  # queries and keys are padded to multiples of it
_LARGEST_BLOCK = 512


def splash_segment_takes(width: int) -> bool:
  """Whether `splash_segment` can be called for a width of heads: on one TPU.

  The compiler cannot split the kernel's work over several devices by itself.
  """
  one_tpu = jax.default_backend() == "tpu" and jax.device_count() == 1
  fits = width % 64 == 0 and width <= 256
  return one_tpu and fits and importlib.util.find_spec(_LIBRARY) is not None


def splash_segment(
  query: Float[Array, "B T N H"],
  key: Float[Array, "B S K H"],
  value: Float[Array, "B S K H"],
  lengths: Int[Array, "B"] | None = None,
  *,
  causal: bool = False,
  interpret: bool = False,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T N"]]:
  """Values and float32 log-sum-exp of the scores of one segment; no gradient is defined.

  Args:
    query, key, value: in any dtype.
    lengths: keys of each row that are not padding; None for all. Rows may have none.
    causal: query t sees the keys 0 to t only.
    interpret: run the kernel's program without a TPU, slowly: for tests.

  Returns:
    `[B, T, N, H]` in the query's dtype and `[B, T, N]`: 0 and -inf where no key is visible.
  """
  # Imported where it is used: it is experimental, and slow to import.
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

  time, heads, places = query.shape[1], query.shape[2], key.shape[1]
  if lengths is None:
    lengths = jnp.full(query.shape[:1], places)
  # The kernel scales nothing itself.
  query, key, value = map(_laid_out, (query * query.shape[-1] ** -0.5, key, value))
  shape = query.shape[2], key.shape[2]
  mask = masks.CausalMask(shape) if causal else masks.FullMask(shape)
  block_kv = _block(shape[1])
  kernel = splash.make_splash_mha_single_device(
    masks.MultiHeadMask([mask] * heads),
    block_sizes=splash.BlockSizes(
      block_q=_block(shape[0]), block_kv=block_kv, block_kv_compute=block_kv
    ),
    save_residuals=True,
    interpret=interpret,
  )
  # A query sees the keys of its own number: 0, against 1 of padding.
  numbers = splash.SegmentIds(
    jnp.zeros((len(query), shape[0]), jnp.int32),
    (jnp.arange(shape[1]) >= lengths[:, None]).astype(jnp.int32),
  )
  attended, (log_total,) = jax.vmap(kernel)(query, key, value, numbers)
  attended, log_total = attended[:, :, :time], log_total[:, :, :time]
  some = (lengths > 0)[:, None, None]
  attended = jnp.where(some[..., None], attended, 0).swapaxes(1, 2)
  return attended, jnp.where(some, log_total, -jnp.inf).swapaxes(1, 2)


def _laid_out(x: Float[Array, "B T N H"]) -> Float[Array, "B N t H"]:
  """Heads first, and time padded to whole blocks."""
  more = -x.shape[1] % _BLOCK
  return jnp.pad(x, ((0, 0), (0, more), (0, 0), (0, 0))).swapaxes(1, 2)


def _block(length: int) -> int:
  """The largest block that divides a padded length."""
  return min(_LARGEST_BLOCK, length & -length)
