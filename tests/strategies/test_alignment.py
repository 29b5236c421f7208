import itertools
import math

import numpy as np
import pytest
from scipy.integrate import quad

from tea_jax.strategies import (
  alignment_coefficient,
  crossover_budget,
  diagonal_efficiency,
  plurality_partials,
  plurality_success,
)


def weight(p, budget):
  return budget * p * (1 - p) ** (budget - 1) / (1 - (1 - p) ** budget)


@pytest.mark.parametrize(
  "small, large, expected", [(1, 4, 1.907333), (4, 16, 7.980423), (16, 64, 31.995152)]
)
def test_crossovers_are_those_of_the_papers_families(small, large, expected):
  assert crossover_budget(small, large) == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize(
  "train, test, expected",
  [
    (4, 2, 0.929504),
    (1, 2, 0.909995),
    (16, 8, 0.934118),
    (4, 8, 0.933239),
    (64, 32, 0.934388),
    (16, 32, 0.934335),
  ],
)
def test_alignment_coefficients_match_adaptive_quadrature(train, test, expected):
  actual = alignment_coefficient(train, test)
  assert actual == pytest.approx(expected, abs=1e-6)
  options = {"epsabs": 1e-13, "epsrel": 1e-13, "limit": 500, "points": [1e-3, 0.01, 0.1]}

  def inner(a, b):
    return quad(lambda p: weight(p, a) * weight(p, b), 1e-12, 1, **options)[0]

  adaptive = inner(train, test) / math.sqrt(inner(train, train) * inner(test, test))
  assert actual == pytest.approx(adaptive, rel=1e-10)


def test_a_budget_is_aligned_with_itself_and_the_coefficient_is_symmetric():
  for budget in (1, 3.5, 64, 4096):
    assert alignment_coefficient(budget, budget) == pytest.approx(1, abs=1e-12)
  assert alignment_coefficient(2, 50) == pytest.approx(alignment_coefficient(50, 2), rel=1e-12)


def enumerated_success(p, budget, target):
  total = 0.0
  for votes in itertools.product(range(len(p)), repeat=budget):
    counts = np.bincount(votes, minlength=len(p))
    if counts[target] > max(c for j, c in enumerate(counts) if j != target):
      total += math.prod(p[v] for v in votes)
  return total


def test_plurality_matches_enumeration_of_all_votes():
  p = np.array([0.3, 0.45, 0.2, 0.05])
  for budget, target in ((1, 0), (4, 1), (6, 0), (6, 2)):
    assert plurality_success(p, budget=budget, target=target) == pytest.approx(
      enumerated_success(p, budget, target), rel=1e-12
    )


def test_diagonal_overestimates_and_finite_differences_say_by_how_much():
  p = np.array([0.3, 0.4, 0.3])
  partials = plurality_partials(p, budget=8)
  np.testing.assert_allclose(partials[0], 2.568672, atol=1e-6)

  def success(own):
    others = p[1:] * (1 - own) / (1 - p[0])
    return plurality_success(np.array([own, *others]), budget=8)

  slope = (success(0.3 + 1e-6) - success(0.3 - 1e-6)) / 2e-6
  assert slope == pytest.approx(1.669572, abs=1e-5)
  efficiency = diagonal_efficiency(partials, p)
  assert efficiency == pytest.approx(1.538521, abs=1e-6)
  assert efficiency == pytest.approx(partials[0] / slope, rel=1e-6)


def test_diagonal_is_exact_where_rivals_do_not_matter():
  # Pass@N: a vote for a wrong answer takes nothing away, C = 0.
  assert diagonal_efficiency(np.array([2.0, 0.0, 0.0]), np.array([0.2, 0.5, 0.3])) == 1
  assert diagonal_efficiency(np.array([1.0, 3.0]), np.array([0.5, 0.5])) is None


@pytest.mark.parametrize(
  "call, message",
  [
    (lambda: alignment_coefficient(0.5, 2), "train_budget=0.5"),
    (lambda: crossover_budget(4, 4), "small=4 and large=4"),
    (lambda: plurality_partials(np.array([0.5, 0.6]), budget=3), "sums to 1"),
    (lambda: plurality_success(np.array([0.5, 0.5]), budget=3, target=2), "target=2"),
  ],
)
def test_impossible_arguments_are_refused(call, message):
  with pytest.raises(ValueError, match=message):
    call()
