"""Attention of a decoding step: one token a row over its prompt and over its own past.

`XLA` is products and one softmax over both. `PallasDecode` is for NVIDIA GPUs: JAX's grouped-query
decode kernel goes over a row's own keys and reads the places that were written, not those ahead.
The prompt's keys are shared by all its rollouts, whose queries make a product of two matrices of
it, which XLA does well. Both parts meet by their log-sum-exp.

No GPU has run the kernel from here yet: tests interpret it on a CPU and lower it for CUDA.

Axes: R rows, P prompts, N query heads, K key heads, H head width, T_p and S places.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from tea_jax.models.attention import KeyValue, cached_attention, cached_segment
from tea_jax.models.config import ModelConfig
from tea_jax.models.decode_sharding import cache_sharding
from tea_jax.models.visibility import visible_keys

DecodeAttentionKind = Literal["xla", "pallas"]

_LARGEST_BLOCK = 64  # keys
_PROGRAMS = 512  # that fill a GPU, a few on each of its processors


class OwnCache(Protocol):
  """One layer's keys and values of the completions; `value` is `[R, K, S, H]` in any layout."""

  @property
  def key(self) -> Array: ...

  @property
  def value(self) -> Array: ...

  def write(self, key: Array, value: Array, index: Array) -> Any: ...

  def widen(self, more: int) -> Any: ...


class DecodeAttention(Protocol):
  """How a decoding step attends, and what cache it keeps of the completions.

  Attributes:
    multiple: the caches' places are multiples of it.
  """

  @property
  def multiple(self) -> int: ...

  def empty(self, shape: tuple[int, int, int, int], dtype: Any) -> Any:
    """A layer's zeroed cache of `(R, K, S, H)`."""
    ...

  def attend(
    self,
    query: Float[Array, "R N H"],
    prompt: tuple[KeyValue, Bool[Array, "P T_p"]],
    own: Any,
    step: Int[Array, ""],
    window: int | None,
  ) -> Float[Array, "R N H"]:
    """Over the prompts' visible keys, and over the own ones of places 0 to `step` in a window."""
    ...

  def split(self, rows: NamedSharding | None) -> DecodeAttention:
    """The same for rows that are split over devices."""
    ...


@dataclasses.dataclass(frozen=True)
class XlaDecode:
  """Plain products; see `attention.cached_attention`."""

  multiple: int = 1

  def empty(self, shape: tuple[int, int, int, int], dtype: Any) -> KeyValue:
    rows, heads, places, width = shape
    return KeyValue(jnp.zeros((rows, heads, width, places), dtype), jnp.zeros(shape, dtype))

  def attend(self, query, prompt, own, step, window) -> Array:
    places = jnp.arange(own.key.shape[-1])
    visible = visible_keys(step[None, None], places[None], window)[0]
    return cached_attention(query, [prompt, (own, visible)])

  def split(self, rows: NamedSharding | None) -> XlaDecode:
    return self


XLA = XlaDecode()


class KernelCache(NamedTuple):
  """One layer's cache as the kernel reads it: keys like values, `[R, K, S, H]`."""

  key: Float[Array, "R K S H"]
  value: Float[Array, "R K S H"]

  def write(
    self, key: Float[Array, "R K H"], value: Float[Array, "R K H"], index: Int[Array, ""]
  ) -> KernelCache:
    """Puts one token a row at place `index`."""
    return KernelCache(
      *(
        jax.lax.dynamic_update_slice_in_dim(old, new[:, :, None], index, axis=2)
        for old, new in zip(self, (key, value), strict=True)
      )
    )

  def widen(self, more: int) -> KernelCache:
    """With so many zeroed places more."""
    return KernelCache(*(jnp.pad(x, ((0, 0), (0, 0), (0, more), (0, 0))) for x in self))


@dataclasses.dataclass(frozen=True)
class PallasDecode:
  """JAX's Pallas kernel over the own keys; see `decode_attention` for what it can do.

  Attributes:
    interpret: run the kernel's program without a GPU, for tests.
    rows: sharding of the rows; the kernel then goes over each device's own. None for one device.
  """

  interpret: bool = False
  rows: NamedSharding | None = None
  multiple: int = 16  # the smallest block of keys

  def empty(self, shape: tuple[int, int, int, int], dtype: Any) -> KernelCache:
    return KernelCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

  def attend(self, query, prompt, own, step, window) -> Array:
    own_segment = functools.partial(self._own_segment, window=window)
    if self.rows is not None:
      spec = cache_sharding(self.rows, own.key.shape).spec
      own_segment = jax.shard_map(
        own_segment,
        mesh=self.rows.mesh,
        in_specs=(spec, spec, PartitionSpec()),
        out_specs=spec,
        check_vma=False,
      )
    # The row's own token is visible in any window, so one peak of the two is a score.
    segments = [own_segment(query, own, step), cached_segment(query, *prompt)]
    highest = functools.reduce(jnp.maximum, (peak for *_, peak in segments))
    shares = [jnp.exp(peak - highest) for *_, peak in segments]
    values, totals = 0.0, jnp.zeros_like(highest)
    for (part, total, _), share in zip(segments, shares, strict=True):
      values += part.astype(jnp.float32) * share[..., None]
      totals += total * share
    return jnp.asarray(values / totals[..., None], query.dtype)

  def split(self, rows: NamedSharding | None) -> PallasDecode:
    return dataclasses.replace(self, rows=rows)

  def _own_segment(
    self, query: Array, own: KernelCache, step: Array, *, window: int | None
  ) -> tuple[Array, Array, Array]:
    """As `cached_segment`, of the own keys; the sum of values in the dtype of the query."""
    rows, heads, places, _ = own.key.shape
    block, splits = kernel_blocks(places, rows * heads)
    # Not divided by the sum of weights, to which the kernel would add a rounding unit.
    part, (total, peak) = _kernel()(
      query,
      own.key.swapaxes(1, 2),  # which the kernel's caller undoes
      own.value.swapaxes(1, 2),
      start_idx=None if window is None else jnp.maximum(step + 1 - window, 0),
      kv_seq_len=step + 1,
      block_k=block,
      k_splits=splits,
      return_residuals=True,
      normalize_output=False,
      interpret=self.interpret,
    )
    return part, total, peak


def kernel_blocks(places: int, programs: int) -> tuple[int, int]:
  """(keys of a block, parts into which the places are cut) for so many rows times key heads.

  Example:
    >>> kernel_blocks(256, 96), kernel_blocks(256, 1024), kernel_blocks(48, 96)
    ((64, 4), (64, 1), (16, 1))
  """
  block = min(_LARGEST_BLOCK, places & -places)  # a power of two that divides
  splits = 1
  while programs * splits < _PROGRAMS and places % (2 * splits * block) == 0:
    splits *= 2
  return block, splits


def decode_attention(
  kind: DecodeAttentionKind,
  config: ModelConfig,
  *,
  interpret: bool = False,
) -> DecodeAttention:
  """The attention of a decoding step, by its name.

  Args:
    kind: "xla" anywhere; "pallas" on NVIDIA GPUs, for heads as wide as a power of two.
    config: the model.
    interpret: let "pallas" run without a GPU, slowly: for tests.

  Raises:
    ValueError: where "pallas" cannot run.
  """
  if kind == "xla":
    return XLA
  if kind != "pallas":
    raise ValueError(f'decode_attention={kind!r} is unknown; use "xla" or "pallas"')
  width = config.head_dim
  if width & (width - 1) or (width < 16 and not interpret):
    raise ValueError(
      f'decode_attention="pallas" needs heads as wide as a power of two from 16 on, not {width};'
      ' use "xla"'
    )
  if jax.default_backend() != "gpu" and not interpret:
    raise ValueError(
      f'decode_attention="pallas" needs an NVIDIA GPU, not {jax.default_backend()}; use "xla"'
    )
  _kernel()
  return PallasDecode(interpret)


@functools.cache
def _kernel() -> Callable[..., Any]:
  # Imported where it is used: Pallas is experimental, and slow to import.
  try:
    from jax.experimental.pallas.ops.gpu.decode_attention import gqa
  except ImportError as error:
    raise ValueError(
      f'jax {jax.__version__} has no Pallas decode kernel; use decode_attention="xla"'
    ) from error
  return gqa
