"""Tail constants against arbitrary-precision quadrature and closed forms."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest

from tea_jax.tail import expected_maximum, minimum_budget, tail_constants
from tea_jax.tail.gaussian import influence_table


def _exact_maximum(budget: int) -> mpmath.mpf:
  """c_N = integral of 1 - Phi^N over x > 0, less that of Phi^N over x < 0."""
  with mpmath.workdps(30):
    below = mpmath.quad(lambda x: mpmath.ncdf(x) ** budget, [-14, -7, -3, -1, 0])
    edges = [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 14]
    above = mpmath.quad(lambda x: -mpmath.expm1(budget * mpmath.log(mpmath.ncdf(x))), edges)
    return above - below


def _exact_tail(tail_fraction: float):
  with mpmath.workdps(40):
    alpha = mpmath.mpf(tail_fraction)
    quantile = mpmath.sqrt(2) * mpmath.erfinv(1 - 2 * alpha)
    mills_ratio = mpmath.npdf(quantile) / alpha
    return quantile, mills_ratio, 1 + quantile * mills_ratio - mills_ratio**2


@pytest.mark.parametrize("budget", [2, 3, 7, 64, 1000, 123_456, 10**7])
def test_expected_maximum_matches_arbitrary_precision(budget):
  assert expected_maximum(budget) == pytest.approx(float(_exact_maximum(budget)), rel=1e-13)


@pytest.mark.parametrize(
  "budget, value",
  [
    (1, 0.0),
    (2, 1 / math.sqrt(math.pi)),
    (3, 1.5 / math.sqrt(math.pi)),
    (5, 1.1629644736405196),
    (64, 2.34373346507944),
    (128, 2.59459736859947),
  ],
)
def test_expected_maximum_has_its_known_values(budget, value):
  assert expected_maximum(budget) == pytest.approx(value, rel=2e-14, abs=1e-15)


@pytest.mark.parametrize("tail_fraction", [1e-3, 0.0123, 0.1, 0.2, 0.25, 1 / 3, 0.49999, 0.5])
@pytest.mark.parametrize("budget", [2000, 10**7])
def test_constants_match_arbitrary_precision(tail_fraction, budget):
  constants = tail_constants(tail_fraction, budget)
  quantile, mills_ratio, tail_variance = _exact_tail(tail_fraction)
  maximum = _exact_maximum(budget)
  curvature = (maximum - mills_ratio) / mpmath.sqrt(tail_variance)
  exact = [float(v) for v in (quantile, mills_ratio, tail_variance, maximum, curvature)]
  np.testing.assert_allclose(constants, exact, rtol=1e-10, atol=1e-300)


@pytest.mark.parametrize(
  "tail_fraction, budget, curvature",
  [
    (0.25, 128, 2.692398465223154),
    (0.1, 256, 2.606328721954368),
    (0.2, 64, 2.0186899066669524),
  ],
)
def test_curvature_has_its_worked_values(tail_fraction, budget, curvature):
  assert tail_constants(tail_fraction, budget).curvature == pytest.approx(curvature, rel=1e-13)


@pytest.mark.parametrize("tail_fraction", [0.001, 0.05, 0.1, 0.25, 0.5])
def test_minimum_budget_is_the_first_with_positive_curvature(tail_fraction):
  smallest = minimum_budget(tail_fraction)
  assert tail_constants(tail_fraction, smallest).curvature > 0
  with pytest.raises(ValueError, match=f"budget >= {smallest} "):
    tail_constants(tail_fraction, smallest - 1)


@pytest.mark.parametrize("tail_fraction", [0.0, -0.1, 0.51, 1.0, float("nan"), "0.25", None])
def test_tail_fraction_outside_its_range_is_refused(tail_fraction):
  with pytest.raises(ValueError, match=r"tail_fraction=.* must be a Python number in \(0, 0.5\]"):
    tail_constants(tail_fraction, 128)


@pytest.mark.parametrize("budget", [0, -3, 12.5, None])
def test_budget_that_is_no_count_is_refused(budget):
  with pytest.raises(ValueError, match=r"budget=.* must be a Python int"):
    tail_constants(0.25, budget)


def test_constants_are_cached():
  assert tail_constants(0.25, 999) is tail_constants(0.25, 999)


@pytest.mark.parametrize("budget", [2, 5, 128, 10**6])
def test_influence_table_matches_arbitrary_precision(budget):
  table = influence_table(budget)
  with mpmath.workdps(18):
    for value in (table.lower + 0.3, 0.1, 1.3, 2.7, 4.9):
      if not table.lower < value < table.upper:
        continue
      edges = [value] + [x for x in (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 14) if x > value]
      excess = mpmath.quad(
        lambda t: -mpmath.expm1((budget - 1) * mpmath.log(mpmath.ncdf(t))), edges
      )
      exact = budget * (value + excess - _exact_maximum(budget))
      position = (value - table.lower) * table.inverse_step
      cell = int(position)
      interpolated = np.polyval(table.coefficients[cell][::-1], position - cell)
      assert interpolated == pytest.approx(float(exact), abs=1e-9 * budget)


def test_influence_table_meets_its_straight_line_at_the_upper_end():
  for budget in (2, 128, 10**7):
    table = influence_table(budget)
    at_end = table.coefficients[-1].sum()
    line = budget * (table.upper - expected_maximum(budget))
    assert at_end == pytest.approx(line, rel=1e-11)
