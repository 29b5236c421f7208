"""The k-th largest of each group, without sorting.

On CPUs XLA sorts rows one at a time, several times slower than `numpy.partition`, so here the rows
are compared all at once. Other platforms sort fast and do.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

# A network of m wires has m log2(m)^2 / 4 comparators: up to here it compiles in two seconds.
_LARGEST_NETWORK = 128
_BATCHES = 4
_PIECE = 256


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def kth_largest(values: Float[Array, "rows num_rollouts"], count: int) -> Float[Array, "rows"]:
  """The `count`-th largest value of each row, exactly; ties share its derivative evenly.

  Args:
    values: `[rows, num_rollouts]` finite float32 or float64 values.
    count: k, with 1 <= k <= num_rollouts; static.

  Returns:
    `[rows]`.
  """
  on_cpu = _by_network if values.shape[1] <= _LARGEST_NETWORK else _by_bisection
  return lax.platform_dependent(
    values,
    cpu=lambda values: on_cpu(values, count),
    default=lambda values: lax.top_k(values, count)[0][:, -1],
  )


@kth_largest.defjvp
def _kth_largest_jvp(count, primals, tangents):
  (values,), (tangent,) = primals, tangents
  kth = kth_largest(values, count)
  ties = (values == kth[:, None]).astype(values.dtype)
  return kth, jnp.sum(ties * tangent, axis=-1) / jnp.sum(ties, axis=-1)


def _by_network(values: Array, count: int) -> Array:
  """Sorts the columns, many rows at a time; what does not reach the k-th is never compiled."""

  def of_row(row: Array) -> Array:
    wires = list(row)
    for high, low in _comparators(len(wires)):
      larger, smaller = jnp.maximum(wires[high], wires[low]), jnp.minimum(wires[high], wires[low])
      wires[high], wires[low] = larger, smaller
    return wires[count - 1]

  # The loop over batches is a border: without one XLA repeats the network inside all that uses it.
  rows = values.shape[0]
  padded = jnp.pad(values, ((0, -rows % _BATCHES), (0, 0)))
  return lax.map(of_row, padded, batch_size=padded.shape[0] // _BATCHES)[:rows]


def _comparators(num_wires: int) -> Iterator[tuple[int, int]]:
  """Batcher's odd-even merge sorting network, for any number of wires."""
  size = 1 << (num_wires - 1).bit_length()
  for width in (1 << i for i in range(size.bit_length() - 1)):
    for stride in (width >> i for i in range(width.bit_length())):
      for start in range(stride % width, size - stride, 2 * stride):
        for wire in range(start, start + min(stride, size - start - stride)):
          same_merge = wire // (2 * width) == (wire + stride) // (2 * width)
          if same_merge and wire + stride < num_wires:
            yield wire, wire + stride


def _by_bisection(values: Array, count: int) -> Array:
  """Finds the bits of the k-th largest from the top: counts how many values reach a candidate."""
  bits = 8 * values.dtype.itemsize
  integer = jnp.dtype(f"int{bits}")
  largest, smallest = jnp.iinfo(integer).max, jnp.iinfo(integer).min

  def flip(pattern: Array) -> Array:
    # Its own inverse: the bits of floats as integers in the same order.
    return pattern ^ ((pattern >> (bits - 1)) & largest)

  keys = flip(lax.bitcast_convert_type(values, integer))
  # XLA's sums over a row are not vector code on CPUs; those of pieces of rows are, and products.
  # What pads the last piece reaches no candidate.
  keys = jnp.pad(keys, ((0, 0), (0, -keys.shape[1] % _PIECE)), constant_values=smallest)
  pieces = jnp.split(keys, keys.shape[1] // _PIECE, axis=1)
  ones = jnp.ones(_PIECE, jnp.float32)

  def refine(step, found):
    # From the smallest integer, adding the top bit gives 0.
    candidate = found + (jnp.ones((), integer) << (bits - 1 - step).astype(integer))
    reached = [(piece >= candidate[:, None]).astype(jnp.int32) for piece in pieces]
    reaching = functools.reduce(operator.add, reached)
    return jnp.where(reaching.astype(ones.dtype) @ ones >= count, candidate, found)

  found = lax.fori_loop(0, bits, refine, jnp.full(values.shape[:1], smallest, integer))
  return lax.bitcast_convert_type(flip(found), values.dtype)
