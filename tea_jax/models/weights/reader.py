"""From the tensors of a checkpoint to the parameter tree, one leaf at a time.

Knows neither safetensors nor GGUF: a `TensorStore` gives slices of named tensors. Without a mesh a
leaf is written layer by layer into one aligned buffer that JAX adopts without a copy (on CPU), so
that a load peaks at little more than its result; with a mesh every process reads the slices that
its own devices hold.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from tea_jax.models.weights.tensor_map import Path, TensorRef
from tea_jax.runtime import memory

Index = tuple[slice, ...]

_CHECKED = 1 << 20  # elements that are checked at a time
_ALIGNMENT = 64  # bytes; XLA's CPU client adopts a numpy buffer that is aligned so


class TensorStore(Protocol):
  """Named tensors of a checkpoint, read lazily."""

  @property
  def source(self) -> str:
    """The file or folder, for error messages."""
    ...

  def shapes(self) -> Mapping[str, tuple[int, ...]]:
    """Every tensor's shape as it is stored."""
    ...

  def read(self, name: str, index: Index) -> np.ndarray:
    """The slice `index` of one tensor, as a floating-point array."""
    ...


def read_params(
  store: TensorStore,
  refs: Mapping[Path, TensorRef],
  abstract: Mapping[str, Any],
  *,
  dtype: Any = np.float32,
  shardings: Mapping[str, Any] | None = None,
  ignored: Collection[str] = (),
) -> dict[str, Any]:
  """Reads the whole parameter tree.

  Args:
    store: the checkpoint.
    refs: leaf -> tensor, for every leaf of `abstract`.
    abstract: nested dict of `jax.ShapeDtypeStruct`, the expected shapes.
    dtype: of the master weights.
    shardings: nested dict like `abstract` of `NamedSharding`; None for the default device.
    ignored: tensors of the store that may be left over.

  Returns:
    The nested dict of arrays.

  Raises:
    ValueError: naming the missing, left-over or misshapen tensors.
    MemoryError: if the weights will not fit; see `memory.check_memory`.
  """
  flat: dict[Any, Any] = dict(flatten_dict(dict(abstract)))
  shapes = {path: tuple(leaf.shape) for path, leaf in flat.items()}
  check_tensors(store, refs, shapes, ignored=ignored)
  sharded = None if shardings is None else flatten_dict(dict(shardings))
  _check_fit(shapes, np.dtype(dtype), sharded, store.source)
  leaves = {}
  for path, shape in shapes.items():
    leaves[path] = _place(store, refs[path], shape, dtype, sharded and sharded[path])
  return unflatten_dict(leaves)


def check_tensors(
  store: TensorStore,
  refs: Mapping[Path, TensorRef],
  shapes: Mapping[Path, tuple[int, ...]],
  *,
  ignored: Collection[str] = (),
) -> None:
  """Names every missing, extra and misshapen tensor before anything is read.

  Raises:
    ValueError: with up to eight names of each kind.
  """
  expected: dict[str, tuple[int, ...]] = {}
  for path, shape in shapes.items():
    ref, layers = refs[path], range(shape[0])
    for layer in layers if refs[path].stacked else [0]:
      expected[ref.name.format(layer=layer)] = stored_shape(ref, shape)
  present = store.shapes()
  missing = [name for name in expected if name not in present]
  extra = [name for name in present if name not in expected and name not in ignored]
  wrong = [
    f"{name} {tuple(present[name])} instead of {shape}"
    for name, shape in expected.items()
    if name in present and tuple(present[name]) != shape
  ]
  problems = [
    f"{what}: {', '.join(names[:8])}{f' and {len(names) - 8} more' if len(names) > 8 else ''}"
    for what, names in (
      ("missing tensors", missing),
      ("tensors that the architecture does not have", extra),
      ("wrong shapes", wrong),
    )
    if names
  ]
  if problems:
    hint = ""
    if "lm_head.weight" in missing or "output.weight" in missing:
      hint = " (a head that is the embedding needs tie_word_embeddings=true in config.json)"
    raise ValueError(f"{store.source} does not match its config: {'; '.join(problems)}{hint}.")


def stored_shape(ref: TensorRef, shape: tuple[int, ...]) -> tuple[int, ...]:
  """Shape of one tensor in the checkpoint, from the shape of our leaf."""
  shape = shape[1:] if ref.stacked else shape
  if ref.total:
    shape = (*shape[:-1], ref.total)
  return shape[::-1] if ref.transposed else shape


def read_leaf(
  store: TensorStore, ref: TensorRef, shape: tuple[int, ...], index: Index, out: np.ndarray
) -> None:
  """Writes the slice `index` of a leaf of the given full shape into `out`.

  Raises:
    ValueError: naming a tensor that is not finite.
  """
  if not ref.stacked:
    _assign(out, _read_tensor(store, ref, ref.name, shape, index), ref.name, store)
    return
  for position, layer in enumerate(range(*index[0].indices(shape[0]))):
    name = ref.name.format(layer=layer)
    _assign(out[position], _read_tensor(store, ref, name, shape[1:], index[1:]), name, store)


def _assign(out: np.ndarray, values: np.ndarray, name: str, store: TensorStore) -> None:
  """Writes one tensor's values, which must be finite in the dtype of `out`, rows at a time."""
  rows = max(1, _CHECKED // max(1, out[:1].size)) if out.ndim else 1
  for start in range(0, len(out) if out.ndim else 1, rows):
    part = slice(start, start + rows) if out.ndim else ...
    with np.errstate(over="ignore", invalid="ignore"):
      out[part] = values[part]
    if not np.isfinite(out[part]).all():
      raise ValueError(
        f"Tensor {name} of {store.source} holds values that are not finite numbers of "
        f"{out.dtype.name}; the checkpoint is damaged, or its training diverged."
      )


def aligned_empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
  """`np.empty` at an address that JAX can adopt without a copy."""
  dtype = np.dtype(dtype)
  size = math.prod(shape) * dtype.itemsize
  buffer = np.empty(size + _ALIGNMENT, np.uint8)
  start = -buffer.ctypes.data % _ALIGNMENT
  return buffer[start : start + size].view(dtype).reshape(shape)


def _place(
  store: TensorStore, ref: TensorRef, shape: tuple[int, ...], dtype: Any, sharding: Any
) -> jax.Array:
  def read(index: Index | None) -> np.ndarray:
    index = tuple(slice(None) for _ in shape) if index is None else index
    lengths = tuple(len(range(*part.indices(size))) for part, size in zip(index, shape))
    out = aligned_empty(lengths, dtype)
    read_leaf(store, ref, shape, index, out)
    return out

  if sharding is None:
    return jax.device_put(read(None))
  return jax.make_array_from_callback(shape, sharding, read, dtype=jnp.dtype(dtype))


def _read_tensor(
  store: TensorStore, ref: TensorRef, name: str, shape: tuple[int, ...], index: Index
) -> np.ndarray:
  """One layer's slice in our layout."""
  if ref.interleaved_heads:
    return _deinterleave(store, ref, name, shape)[index]
  if ref.total:
    start, stop, _ = index[-1].indices(shape[-1])
    index = (*index[:-1], slice(ref.start + start, ref.start + stop))
  values = store.read(name, index[::-1] if ref.transposed else index)
  return _to_ours(values, ref)


def _deinterleave(
  store: TensorStore, ref: TensorRef, name: str, shape: tuple[int, ...]
) -> np.ndarray:
  """Rotary pairs (0, 1), (2, 3), ... of each head -> first halves, then second halves."""
  stored = stored_shape(ref, shape if not ref.stacked else (0, *shape))
  values = store.read(name, tuple(slice(None) for _ in stored))
  heads, rest = ref.interleaved_heads, stored[1:]
  pairs = values.reshape(heads, stored[0] // heads // 2, 2, *rest)
  return _to_ours(np.swapaxes(pairs, 1, 2).reshape(stored), ref)


def _to_ours(values: np.ndarray, ref: TensorRef) -> np.ndarray:
  values = values.T if ref.transposed else values
  return values - np.float32(ref.offset) if ref.offset else values


def _check_fit(
  shapes: Mapping[Path, tuple[int, ...]],
  dtype: np.dtype,
  shardings: Mapping[Path, Any] | None,
  source: str,
) -> None:
  """Compares what a device, and the host while reading, must hold with what is free."""
  if shardings is None:
    sizes = [math.prod(shape) for shape in shapes.values()]
    local = 1
  else:
    sizes = [math.prod(shardings[path].shard_shape(shape)) for path, shape in shapes.items()]
    local = jax.local_device_count()
  what = f"the {dtype.name} weights of {source}"
  memory.check_memory(
    dtype.itemsize * sum(sizes), memory.available_device_bytes(), what, "device memory"
  )
  on_host = jax.local_devices()[0].platform == "cpu"
  host = dtype.itemsize * (local * sum(sizes) if on_host else max(sizes))
  memory.check_memory(host, memory.available_host_bytes(), what, "host memory")
