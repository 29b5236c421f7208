"""Prefix sizes and cancellation weights: worked values, and every group size up to 5000."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tea_jax.tail import cancellation_weights, compatible_prefixes, tail_count


@pytest.mark.parametrize(
  "prefixes, order, weights",
  [
    ((16, 32, 64), 2, (1 / 3, -2, 8 / 3)),
    ((32, 64), 1, (-1, 2)),
    ((16, 32, 48, 64), 2, (0.350, -2.195, 0.438, 2.407)),
    ((7,), 0, (1,)),
    ((10, 20, 30), 0, (1 / 3, 1 / 3, 1 / 3)),
  ],
)
def test_weights_have_their_worked_values(prefixes, order, weights):
  np.testing.assert_allclose(cancellation_weights(prefixes, order), weights, atol=5e-4)


def test_weights_with_no_freedom_are_exact():
  np.testing.assert_array_equal(cancellation_weights((1, 2), 1), [-1, 2])
  np.testing.assert_array_equal(cancellation_weights((1, 2, 4), 2), [1 / 3, -2, 8 / 3])


def test_weights_do_not_depend_on_the_unit_of_size():
  np.testing.assert_array_equal(
    cancellation_weights((16, 32, 48, 64), 2), cancellation_weights((1, 2, 3, 4), 2)
  )


@pytest.mark.parametrize("prefixes, order", [((5, 9, 13, 17), 2), ((3, 4, 8, 9, 20), 1)])
def test_norm_weights_match_the_pseudo_inverse(prefixes, order):
  x = np.array(prefixes) / prefixes[-1]
  vandermonde = np.stack([x**-power for power in range(order + 1)])
  weights = np.linalg.lstsq(vandermonde, np.eye(order + 1)[0], rcond=None)[0]
  np.testing.assert_allclose(cancellation_weights(prefixes, order), weights, rtol=1e-9)


@pytest.mark.parametrize("objective", ["norm", "variance"])
@pytest.mark.parametrize("order", [0, 2])
def test_weights_minimise_their_objective_among_those_that_cancel(objective, order):
  prefixes = (16, 25, 48, 64, 70)
  sizes = np.array(prefixes, float)
  gram = 1 / np.maximum(sizes[:, None], sizes) if objective == "variance" else np.eye(5)
  weights = cancellation_weights(prefixes, order, objective=objective)
  vandermonde = np.stack([(sizes / sizes[-1]) ** -power for power in range(order + 1)])
  free = np.linalg.svd(vandermonde)[2][order + 1 :]
  # At the minimum the gradient is orthogonal to every direction that keeps the constraints.
  np.testing.assert_allclose(free @ gram @ weights, 0, atol=1e-12)


def test_variance_weights_lower_the_variance_of_nested_means():
  sizes = np.array([16, 32, 48, 64])
  covariance = 64 / np.maximum(sizes[:, None], sizes)
  norm, variance = (cancellation_weights(sizes, 2, objective=o) for o in ("norm", "variance"))
  assert variance @ covariance @ variance < (norm @ covariance @ norm)


def test_covariance_of_nested_means_is_that_of_the_larger():
  draws = np.random.default_rng(0).standard_normal((200_000, 12))
  means = np.stack([draws[:, :n].mean(axis=1) for n in (3, 6, 12)])
  sizes = np.array([3, 6, 12])
  np.testing.assert_allclose(np.cov(means), 1 / np.maximum(sizes[:, None], sizes), atol=3e-3)


TAIL_FRACTIONS = [0.25, 0.5, 0.1, 0.3, 1 / 3, 0.05, 3 / 7]


@pytest.mark.parametrize("tail_fraction", TAIL_FRACTIONS)
def test_every_group_size_gives_compatible_prefixes(tail_fraction):
  alpha = Fraction(tail_fraction).limit_denominator()
  # Below 12 periods some groups are too small; `test_the_error_names...` walks through those.
  for num_rollouts in range(12 * alpha.denominator, 5001):
    sizes = compatible_prefixes(num_rollouts, tail_fraction)
    assert len(set(sizes)) == 4
    assert sizes == tuple(sorted(sizes))
    assert sizes[-1] == num_rollouts
    offsets = {math.ceil(alpha * n) - alpha * n for n in sizes}
    assert len(offsets) == 1
    assert min(tail_count(n, tail_fraction) for n in sizes) >= 2


@pytest.mark.parametrize("tail_fraction", TAIL_FRACTIONS)
def test_weights_of_every_group_size_cancel(tail_fraction):
  stride = 1 if tail_fraction == 0.25 else 7
  for num_rollouts in range(12 * 20, 5001, stride):
    sizes = compatible_prefixes(num_rollouts, tail_fraction)
    weights = cancellation_weights(sizes, 2)
    # Powers of (n_1 / n_j) <= 1, so that 1e-9 is relative to the terms.
    powers = np.stack([(sizes[0] / np.array(sizes, float)) ** power for power in range(3)])
    np.testing.assert_allclose(powers @ weights, [1, 0, 0], atol=1e-9)


@pytest.mark.parametrize("tail_fraction", TAIL_FRACTIONS)
def test_the_error_names_a_group_size_that_works(tail_fraction):
  with pytest.raises(ValueError, match="use num_rollouts=") as error:
    compatible_prefixes(3, tail_fraction)
  suggested = int(str(error.value).split("use num_rollouts=")[1].split(",")[0])
  assert len(compatible_prefixes(suggested, tail_fraction)) == 4
  for smaller in range(1, suggested):
    with pytest.raises(ValueError, match="use num_rollouts="):
      compatible_prefixes(smaller, tail_fraction)


def test_prefixes_round_alike_when_the_group_is_no_multiple_of_the_period():
  assert compatible_prefixes(67, 0.25) == (19, 35, 51, 67)
  assert compatible_prefixes(64, 0.25, (0.25, 0.5, 1)) == (16, 32, 64)
  assert compatible_prefixes(90, 0.1, (1 / 3, 2 / 3, 1)) == (30, 60, 90)


@given(st.sets(st.integers(1, 400), min_size=1, max_size=6), st.sampled_from(["norm", "variance"]))
def test_weights_cancel_for_any_sizes(sizes, objective):
  sizes = tuple(sorted(sizes))
  order = (len(sizes) - 1) * 2 // 3
  weights = cancellation_weights(sizes, order, objective=objective)
  for power in range(order + 1):
    terms = weights * (sizes[0] / np.array(sizes)) ** power
    assert math.fsum(terms) == pytest.approx(float(power == 0), abs=1e-12 * np.abs(terms).sum())


@pytest.mark.parametrize("fractions", [(), (0.5, 0.5), (0.5, 0.25), (0, 0.5), (0.5, 1.1)])
def test_fractions_that_do_not_increase_in_range_are_refused(fractions):
  with pytest.raises(ValueError, match="must be strictly increasing in"):
    compatible_prefixes(64, 0.25, fractions)


def test_illegal_weights_are_refused():
  with pytest.raises(ValueError, match="order=2 needs at least order"):
    cancellation_weights((32, 64), 2)
  with pytest.raises(ValueError, match="strictly increasing positive sizes"):
    cancellation_weights((64, 32), 1)
  with pytest.raises(ValueError, match="objective='best'"):
    cancellation_weights((32, 64), 1, objective="best")


def test_cached_weights_cannot_be_changed():
  with pytest.raises(ValueError, match="read-only"):
    cancellation_weights((32, 64), 1)[0] = 3.0


@pytest.mark.parametrize(
  "num_rollouts, tail_fraction, count",
  [(30, 0.1, 3), (64, 0.25, 16), (65, 0.25, 17), (1, 0.25, 1), (10, 0.3, 3), (3, 1 / 3, 1)],
)
def test_tail_count_rounds_up_exactly(num_rollouts, tail_fraction, count):
  assert tail_count(num_rollouts, tail_fraction) == count
