"""Gaussian tails: the constants that extrapolate an upper tail to the best of N draws.

Everything here is static: plain Python numbers in, float64 numpy out, computed once for each
(tail_fraction, budget) and cached, so that under `jax.jit` they are constants.
"""

from __future__ import annotations

import functools
import numbers
from typing import NamedTuple

import numpy as np
from scipy import special

# The integrand of the expected maximum is analytic and decays faster than exponentially, so the
# trapezoidal rule converges geometrically: with this step the error is below rounding for every
# budget whose maximum lies left of the right end (budgets far beyond 1e15).
_STEP = 1.0 / 64.0
_GRID = np.arange(-12.0, 13.0 + _STEP / 2, _STEP)
_LOG_CDF = special.log_ndtr(_GRID)
_LOG_DENSITY = -0.5 * _GRID**2 - 0.5 * np.log(2.0 * np.pi)

_TABLE_STEP = 1.0 / 128.0


class TailConstants(NamedTuple):
  """Constants of a standard normal's upper tail and of the maximum of `budget` draws.

  Attributes:
    quantile: z, the upper tail_fraction quantile.
    mills_ratio: lambda = phi(z) / tail_fraction, the mean of the tail.
    tail_variance: delta = 1 + z lambda - lambda^2, the variance of the tail.
    expected_maximum: c_N, the expected maximum of `budget` independent draws.
    curvature: kappa = (c_N - lambda) / sqrt(delta): how many standard deviations of the tail lie
      between the mean of the tail and the expected maximum. Positive.

  Example:
    >>> quantile, mills_ratio, *_ = tail_constants(0.25, 128)
    >>> round(quantile, 4), round(mills_ratio, 4)
    (0.6745, 1.2711)
  """

  quantile: float
  mills_ratio: float
  tail_variance: float
  expected_maximum: float
  curvature: float


class InfluenceTable(NamedTuple):
  """Piecewise cubic (Hermite) form of `N (E max(u, M_{N-1}) - E M_N)`, M_k the maximum of k draws.

  Attributes:
    lower, upper: ends of the grid; below it the function is constant, above it has slope N.
    inverse_step: cells for each unit of u.
    coefficients: `[num_cells, 4]` float64, of 1, t, t^2, t^3, with t in [0, 1] inside the cell.
  """

  lower: float
  upper: float
  inverse_step: float
  coefficients: np.ndarray


def check_tail_fraction(tail_fraction: float) -> None:
  """Raises ValueError unless `tail_fraction` is a static number in (0, 0.5]."""
  if not isinstance(tail_fraction, numbers.Real) or not 0 < tail_fraction <= 0.5:
    raise ValueError(
      f"tail_fraction={tail_fraction!r} must be a Python number in (0, 0.5]: the share of the "
      "rewards that is taken as the upper tail; it is static under jit."
    )


def check_budget(budget: int) -> None:
  """Raises ValueError unless `budget` is a static whole number of at least 1."""
  if not isinstance(budget, numbers.Integral) or budget < 1:
    raise ValueError(
      f"budget={budget!r} must be a Python int of at least 1: the number of draws at deployment "
      "of which the best is kept; it is static under jit."
    )


@functools.cache
def expected_maximum(budget: int) -> float:
  """c_N: the expected maximum of `budget` independent standard normal draws.

  c_N = integral of x N phi(x) Phi(x)^(N-1) dx, by the trapezoidal rule in float64.

  Args:
    budget: N >= 1.

  Returns:
    c_N; 0 for a single draw.

  Example:
    >>> expected_maximum(2)  # 1 / sqrt(pi)
    0.56418958354775...
  """
  check_budget(budget)
  if budget == 1:
    return 0.0
  log_weight = np.log(budget) + _LOG_DENSITY + (budget - 1) * _LOG_CDF
  weight = np.exp(log_weight)
  # Dividing by the mass, 1 in exact arithmetic, cancels the rounding of the exponents' common part.
  return float(np.sum(_GRID * weight) / np.sum(weight))


def _mills_ratio(tail_fraction: float) -> tuple[float, float]:
  quantile = -float(special.ndtri(tail_fraction))
  density = float(np.exp(-0.5 * quantile**2) / np.sqrt(2.0 * np.pi))
  return quantile, density / tail_fraction


def minimum_budget(tail_fraction: float) -> int:
  """The smallest budget N whose expected maximum exceeds the mean of the upper tail.

  Args:
    tail_fraction: alpha, in (0, 0.5].

  Returns:
    The smallest N with c_N > lambda, that is with a positive curvature.

  Example:
    >>> minimum_budget(0.25)
    7
  """
  check_tail_fraction(tail_fraction)
  _, mills_ratio = _mills_ratio(float(tail_fraction))
  upper = 2
  while expected_maximum(upper) <= mills_ratio:
    upper *= 2
  lower = upper // 2
  while upper - lower > 1:
    middle = (lower + upper) // 2
    if expected_maximum(middle) > mills_ratio:
      upper = middle
    else:
      lower = middle
  return upper


@functools.cache
def _tail_constants(tail_fraction: float, budget: int) -> TailConstants:
  quantile, mills_ratio = _mills_ratio(tail_fraction)
  tail_variance = 1.0 + quantile * mills_ratio - mills_ratio**2
  maximum = expected_maximum(budget)
  if maximum <= mills_ratio:
    raise ValueError(
      f"budget={budget} does not reach beyond the mean of the upper tail at "
      f"tail_fraction={tail_fraction}, so there is nothing to extrapolate; use "
      f"budget >= {minimum_budget(tail_fraction)} or a larger tail_fraction."
    )
  curvature = (maximum - mills_ratio) / np.sqrt(tail_variance)
  return TailConstants(quantile, mills_ratio, tail_variance, maximum, float(curvature))


def tail_constants(tail_fraction: float, budget: int) -> TailConstants:
  """Constants of the Gaussian tail that extrapolate to the best of `budget` draws.

  z = Phi^-1(1 - alpha), lambda = phi(z) / alpha, delta = 1 + z lambda - lambda^2,
  c_N = E max of N draws, kappa = (c_N - lambda) / sqrt(delta).

  Args:
    tail_fraction: alpha, the upper share taken as tail; in (0, 0.5].
    budget: N, the deployment budget; at least `minimum_budget(tail_fraction)`.

  Returns:
    `TailConstants`, in units of a standard deviation; float64, cached.

  Raises:
    ValueError: if `tail_fraction` is outside its range or `budget` too small to extrapolate; the
      message names the smallest budget that works.

  Example:
    >>> round(tail_constants(0.25, 128).expected_maximum, 4)
    2.5946

  Source: arXiv 2605.10716, Lemma 1.
  """
  check_tail_fraction(tail_fraction)
  check_budget(budget)
  return _tail_constants(float(tail_fraction), int(budget))


@functools.lru_cache(maxsize=64)
def influence_table(budget: int) -> InfluenceTable:
  """Tabulates `g(u) = N (E max(u, M_{N-1}) - E M_N)`, the influence of a standardised reward.

  With g'(u) = N Phi(u)^(N-1) and g(-inf) = -N integral of Phi^(N-1) (1 - Phi), a sum of terms of
  one sign: the difference of expected maxima, which cancels for large N, is never formed.

  Args:
    budget: N >= 2.

  Returns:
    `InfluenceTable`; its error is below 1e-9 N.
  """
  check_budget(budget)
  if budget < 2:
    raise ValueError(f"budget={budget} leaves no other draw to compare with; use budget >= 2.")
  others = budget - 1
  # Phi(u)^(N-1) < 1e-20 below the grid, and N (1 - Phi(u)) < 1e-17 above it.
  lower = max(float(special.ndtri(np.exp(-46.0 / others))), -10.0)
  upper = -float(special.ndtri(1e-17 / budget))
  num_cells = int(np.ceil((upper - lower) / _TABLE_STEP))
  edges = lower + _TABLE_STEP * np.arange(num_cells + 1)

  nodes, weights = np.polynomial.legendre.leggauss(8)
  inner = edges[:-1, None] + _TABLE_STEP * (nodes + 1.0) / 2.0
  slope = budget * np.exp(others * special.log_ndtr(inner))
  increments = slope @ weights * (_TABLE_STEP / 2.0)

  log_survival = special.log_ndtr(-_GRID)
  loss = budget * _STEP * np.sum(np.exp(others * _LOG_CDF + log_survival))
  values = -loss + np.concatenate([[0.0], np.cumsum(increments)])
  slopes = _TABLE_STEP * budget * np.exp(others * special.log_ndtr(edges))

  start, end, start_slope, end_slope = values[:-1], values[1:], slopes[:-1], slopes[1:]
  rise = end - start
  coefficients = np.stack(
    [
      start,
      start_slope,
      3.0 * rise - 2.0 * start_slope - end_slope,
      start_slope + end_slope - 2.0 * rise,
    ],
    axis=-1,
  )
  return InfluenceTable(lower, float(edges[-1]), 1.0 / _TABLE_STEP, coefficients)
