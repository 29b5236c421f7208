"""The k-th largest of each group, and sums over a group, without sorting.

On CPUs XLA sorts rows one at a time and reduces them without vector instructions, so that
`lax.top_k` is slower than `numpy.partition` and several times the rest of an advantage. Both
functions here are branch-free and run as vector code: comparisons of whole columns at a time.
Other platforms have fast sorts and reductions, and use them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

# A sorting network of m wires has m log2(m)^2 / 4 comparators, which are unrolled: up to here it
# compiles in about two seconds and beats the bitwise search, whose cost for a value is constant.
_LARGEST_NETWORK = 128
_BLOCKS = 4
_DIGIT_BITS = 16
_LANES = 128


def _sortable(values: Float[Array, "*shape"]) -> Int[Array, "*shape"]:
  """Signed integers of the same width in the same order: integer comparisons ignore NaN rules."""
  bits = 8 * values.dtype.itemsize
  integer = jnp.dtype(f"int{bits}")
  pattern = lax.bitcast_convert_type(values, integer)
  return pattern ^ ((pattern >> (bits - 1)) & jnp.iinfo(integer).max)


def _unsortable(keys: Int[Array, "*shape"], dtype: jnp.dtype) -> Float[Array, "*shape"]:
  bits = 8 * keys.dtype.itemsize
  return lax.bitcast_convert_type(keys ^ ((keys >> (bits - 1)) & jnp.iinfo(keys.dtype).max), dtype)


def _comparators(num_wires: int) -> Iterator[tuple[int, int]]:
  """Batcher's odd-even merge sorting network, for any number of wires."""
  size = 1
  while size < num_wires:
    size *= 2
  width = 1
  while width < size:
    stride = width
    while stride >= 1:
      for start in range(stride % width, size - stride, 2 * stride):
        for wire in range(start, start + min(stride, size - start - stride)):
          within = wire // (2 * width) == (wire + stride) // (2 * width)
          if within and wire + stride < num_wires:
            yield wire, wire + stride
      stride //= 2
    width *= 2


def _kth_by_network(keys: Int[Array, "rows num_rollouts"], count: int) -> Int[Array, "rows"]:
  """Sorts columns, all rows at once; what does not reach the k-th output is never compiled."""
  wires = [keys[:, column] for column in range(keys.shape[1])]
  for high, low in _comparators(len(wires)):
    wires[high], wires[low] = (
      jnp.maximum(wires[high], wires[low]),
      jnp.minimum(wires[high], wires[low]),
    )
  return wires[count - 1]


def in_blocks(function: Callable[..., Any], *arrays: Array) -> Any:
  """Applies a function of rows to a quarter of the rows at a time, where columns are unrolled.

  A loop is a border for the compiler. Without one XLA's CPU compiler repeats what leads to a
  number for each row, cheap operation by cheap operation, inside everything that uses it: for a
  sorting network or an unrolled sum that is eight times the work. Wider groups end in reductions,
  which are borders themselves.
  """
  rows, num_rollouts = arrays[0].shape
  if num_rollouts > _LARGEST_NETWORK:
    return function(*arrays)
  block = -(-rows // _BLOCKS)

  def split(array):
    padding = [(0, block * _BLOCKS - rows)] + [(0, 0)] * (array.ndim - 1)
    return jnp.pad(array, padding).reshape(_BLOCKS, block, *array.shape[1:])

  results = lax.map(lambda parts: function(*parts), tuple(map(split, arrays)))
  return jax.tree.map(lambda r: r.reshape(-1, *r.shape[2:])[:rows], results)


def _tree_sum(terms: Sequence[Array]) -> Array:
  terms = list(terms)
  while len(terms) > 1:
    pairs = [left + right for left, right in zip(terms[::2], terms[1::2])]
    terms = pairs + terms[len(pairs) * 2 :]
  return terms[0]


def _fold(term: Callable[[Array], Array], values: Array) -> Array:
  """Adds `term` of pieces of `_LANES` values: `[..., n * _LANES]` -> `[..., _LANES]`."""
  starts = range(0, values.shape[-1], _LANES)
  return _tree_sum([term(values[..., start : start + _LANES]) for start in starts])


def _kth_digit(digits: Int[Array, "rows padded"], count: int) -> Int[Array, "rows"]:
  """k-th largest of int16 by bisection of its bits: counts 16 times how many reach a candidate."""
  one = jnp.int16(1)

  def reaches(candidate):
    counts = _fold(lambda piece: (piece >= candidate[:, None]).astype(jnp.int16), digits)
    return jnp.sum(counts.astype(jnp.int32), axis=-1) >= count

  def refine(step, prefix):
    candidate = prefix | (one << (_DIGIT_BITS - 2 - step).astype(jnp.int16))
    return jnp.where(reaches(candidate), candidate, prefix)

  zero = jnp.zeros(digits.shape[:1], jnp.int16)
  prefix = jnp.where(reaches(zero), zero, jnp.int16(jnp.iinfo(jnp.int16).min))
  return lax.fori_loop(0, _DIGIT_BITS - 1, refine, prefix)


def _kth_by_bits(keys: Int[Array, "rows num_rollouts"], count: int) -> Int[Array, "rows"]:
  """Finds the k-th largest 16 bits at a time, from the top: half the memory of whole keys.

  Below the first digit the keys are clipped to those that share the digits found so far, which
  keeps the k-th largest where it is.
  """
  dtype = keys.dtype
  limits = jnp.iinfo(dtype)
  bits = 8 * dtype.itemsize
  padding = -keys.shape[1] % _LANES
  keys = jnp.pad(keys, ((0, 0), (0, padding)), constant_values=limits.min)
  lowest = jnp.full(keys.shape[:1], limits.min, dtype)
  for shift in range(bits - _DIGIT_BITS, -1, -_DIGIT_BITS):
    span = (1 << (shift + _DIGIT_BITS)) - 1
    base = lowest[:, None]
    if shift + _DIGIT_BITS == bits:
      digits = (keys >> shift).astype(jnp.int16)
    else:
      inside = jnp.clip(keys, base, base | span) - base
      digits = ((inside >> shift) - (1 << (_DIGIT_BITS - 1))).astype(jnp.int16)
    digit = _kth_digit(digits, count).astype(dtype)
    # Digits are signed, their smallest standing for the base.
    lowest = lowest + ((digit + (1 << (_DIGIT_BITS - 1))) << shift)
  return lowest


def _kth_on_cpu(values: Float[Array, "rows num_rollouts"], count: int) -> Float[Array, "rows"]:
  keys = _sortable(values)
  if values.shape[1] <= _LARGEST_NETWORK:
    kth = in_blocks(lambda block: _kth_by_network(block, count), keys)
  else:
    kth = _kth_by_bits(keys, count)
  return _unsortable(kth, values.dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def kth_largest(values: Float[Array, "rows num_rollouts"], count: int) -> Float[Array, "rows"]:
  """The `count`-th largest value of each row, exactly; ties share its derivative evenly.

  Args:
    values: `[rows, num_rollouts]` finite float32 or float64 values.
    count: k, with 1 <= k <= num_rollouts; static.

  Returns:
    `[rows]`.
  """
  return lax.platform_dependent(
    values,
    cpu=lambda values: _kth_on_cpu(values, count),
    default=lambda values: lax.top_k(values, count)[0][:, -1],
  )


@kth_largest.defjvp
def _kth_largest_jvp(count, primals, tangents):
  (values,), (tangent,) = primals, tangents
  kth = kth_largest(values, count)
  ties = (values == kth[:, None]).astype(values.dtype)
  return kth, jnp.sum(ties * tangent, axis=-1) / jnp.sum(ties, axis=-1)


def sum_by_reduction(
  term: Callable[..., Array], values: Float[Array, "rows num_rollouts"], *per_row: Array
) -> Float[Array, "rows"]:
  """Sums `term(value, *per_row)`, an elementwise function, over each row."""
  return jnp.sum(term(values, *(value[:, None] for value in per_row)), axis=-1)


def sum_by_columns(
  term: Callable[..., Array], values: Float[Array, "rows num_rollouts"], *per_row: Array
) -> Float[Array, "rows"]:
  """The same sum, written out as vector additions of columns, in pairs."""
  num_rollouts = values.shape[1]
  if num_rollouts <= _LARGEST_NETWORK:
    return _tree_sum([term(values[:, column], *per_row) for column in range(num_rollouts)])
  broadcast = [value[:, None] for value in per_row]
  whole = num_rollouts - num_rollouts % _LANES
  folded = _fold(lambda piece: term(piece, *broadcast), values[:, :whole])
  # A product with ones: the compiler would hand a sum, its pieces unfused, to a reduction library.
  ones = jnp.ones(_LANES, folded.dtype)
  total = jnp.dot(folded, ones, precision=lax.Precision.HIGHEST)
  if whole == num_rollouts:
    return total
  return total + sum_by_reduction(term, values[:, whole:], *per_row)
