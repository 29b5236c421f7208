"""Prefix sizes and weights that cancel the bias of a tail estimate, order by order in 1/n.

The bias of a tail estimator from n rollouts is a power series in 1/n whose coefficients depend on
n only through the rounding of the tail, ceil(alpha n) - alpha n. Estimates from several n with one
rounding offset can therefore be combined so that the leading terms cancel.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Sequence
from fractions import Fraction

import numpy as np

from tea_jax.tail.statistics import rational_tail_fraction, tail_count

DEFAULT_FRACTIONS = (0.25, 0.5, 0.75, 1.0)
_SMALLEST_TAIL = 2


def _sizes(num_rollouts: int, period: int, fractions: Sequence[Fraction]) -> tuple[int, ...]:
  periods, remainder = divmod(num_rollouts, period)
  return tuple(remainder + period * math.floor(fraction * periods) for fraction in fractions)


def _increasing(values: Sequence[int] | Sequence[Fraction]) -> bool:
  return all(smaller < larger for smaller, larger in itertools.pairwise(values))


def _is_legal(sizes: Sequence[int], tail_fraction: float) -> bool:
  return (
    _increasing(sizes) and sizes[0] >= 1 and tail_count(sizes[0], tail_fraction) >= _SMALLEST_TAIL
  )


def compatible_prefixes(
  num_rollouts: int,
  tail_fraction: float,
  fractions: Sequence[float] = DEFAULT_FRACTIONS,
) -> tuple[int, ...]:
  """Sizes of nested prefixes of a group that round their tails alike.

  With tail_fraction = a/b in lowest terms, r = n mod b and t = n // b, the sizes are
  n_j = r + b floor(f_j t): all congruent to n modulo b, so ceil(alpha n_j) - alpha n_j is the same.

  Args:
    num_rollouts: n, rollouts in the group.
    tail_fraction: alpha, in (0, 0.5], taken as the rational number that was meant.
    fractions: f_j, strictly increasing in (0, 1].

  Returns:
    Strictly increasing sizes, one for each fraction, each with a tail of at least 2 rollouts.

  Raises:
    ValueError: if the fractions are not increasing in (0, 1], or the group too small for distinct
      prefixes; the message names the next group size that works.

  Example:
    >>> compatible_prefixes(64, 0.25)
    (16, 32, 48, 64)

  Source: arXiv 2605.10716, eq. 112-115.
  """
  shares = tuple(Fraction(fraction).limit_denominator(10**6) for fraction in fractions)
  if not shares or not _increasing(shares) or shares[0] <= 0 or shares[-1] > 1:
    raise ValueError(f"fractions={tuple(fractions)} must be strictly increasing in (0, 1].")
  period = rational_tail_fraction(tail_fraction).denominator
  sizes = _sizes(num_rollouts, period, shares) if num_rollouts >= 1 else (0,)
  if not _is_legal(sizes, tail_fraction):
    larger = max(num_rollouts, 0) + 1
    while not _is_legal(_sizes(larger, period, shares), tail_fraction):
      larger += 1
    raise ValueError(
      f"num_rollouts={num_rollouts} gives prefixes {sizes} at tail_fraction={tail_fraction}, of "
      f"which each must be larger than the last and have a tail of {_SMALLEST_TAIL} or more; use "
      f"num_rollouts={larger}, fewer or larger fractions, or another tail_fraction."
    )
  return sizes


def _solve(matrix: list[list[Fraction]], right: list[list[Fraction]]) -> list[list[Fraction]]:
  """Solves `matrix @ x = right` exactly, by elimination; both are lists of rows."""
  size = len(matrix)
  rows = [list(matrix[i]) + list(right[i]) for i in range(size)]
  for column in range(size):
    pivot = next(i for i in range(column, size) if rows[i][column])
    rows[column], rows[pivot] = rows[pivot], rows[column]
    rows[column] = [value / rows[column][column] for value in rows[column]]
    for i in range(size):
      factor = rows[i][column]
      if i != column and factor:
        rows[i] = [value - factor * base for value, base in zip(rows[i], rows[column])]
  return [row[size:] for row in rows]


@functools.lru_cache(maxsize=1024)
def _cancellation_weights(sizes: tuple[int, ...], order: int, objective: str) -> np.ndarray:
  largest = sizes[-1]
  inverse = [Fraction(largest, size) for size in sizes]
  vandermonde = [[x**power for x in inverse] for power in range(order + 1)]
  if objective == "norm":
    directions = [list(row) for row in zip(*vandermonde)]
  else:
    covariance = [[min(x, y) for y in inverse] for x in inverse]
    directions = _solve(covariance, [list(row) for row in zip(*vandermonde)])
  gram = [
    [sum((v * d[j] for v, d in zip(row, directions)), Fraction(0)) for j in range(order + 1)]
    for row in vandermonde
  ]
  target = [[Fraction(int(power == 0))] for power in range(order + 1)]
  multipliers = _solve(gram, target)
  weights = [
    sum((d * multiplier[0] for d, multiplier in zip(row, multipliers)), Fraction(0))
    for row in directions
  ]
  result = np.array([float(weight) for weight in weights])
  result.flags.writeable = False
  return result


def cancellation_weights(
  prefixes: Iterable[int], order: int = 2, *, objective: str = "norm"
) -> np.ndarray:
  """Weights of nested estimates that cancel their bias up to `order`: sum_j w_j n_j^-l = 1{l = 0}.

  With x_j = n_j / n and V[l, j] = x_j^-l for l = 0..order:
    objective "norm":     w = V^T (V V^T)^-1 e_0, the smallest Euclidean norm;
    objective "variance": w = C^-1 V^T (V C^-1 V^T)^-1 e_0, the smallest variance w^T C w, with
      C_ij = 1 / max(n_i, n_j), the covariance of means over nested prefixes of independent draws.
  Solved in exact rational arithmetic, so each weight is the correctly rounded one.

  Args:
    prefixes: n_j, strictly increasing positive sizes, at least `order + 1` of them; more of them
      give smaller weights.
    order: K >= 0, the number of powers of 1/n that are cancelled.
    objective: "norm" or "variance".

  Returns:
    `[num_prefixes]` float64 weights that sum to 1; read-only, cached.

  Raises:
    ValueError: if sizes, order or objective are not legal.

  Example:
    >>> print(cancellation_weights((8, 16), 1))  # sum 1, and 1/n cancels: -1/8 + 2/16 = 0
    [-1.  2.]

  Source: arXiv 2605.10716, eq. 116 (objective "norm").
  """
  sizes = tuple(int(size) for size in prefixes)
  if not sizes or sizes[0] < 1 or not _increasing(sizes):
    raise ValueError(f"prefixes={sizes} must be strictly increasing positive sizes.")
  if order < 0 or len(sizes) < order + 1:
    raise ValueError(
      f"order={order} needs at least order + 1 prefixes and order >= 0; "
      f"there are {len(sizes)} prefixes, so use 0 <= order <= {len(sizes) - 1}."
    )
  if objective not in ("norm", "variance"):
    raise ValueError(f'objective={objective!r} must be "norm" or "variance".')
  return _cancellation_weights(sizes, int(order), objective)
