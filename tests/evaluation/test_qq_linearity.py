"""QQ linearity: exact lines, known departures, and the calibration under a normal tail."""

import numpy as np
import pytest
from scipy.special import ndtri

from tea_jax.evaluation.qq_linearity import gaussian_reference, qq_linearity


def normal_scores(num_samples):
  return ndtri((np.arange(num_samples) + 0.5) / num_samples)


def test_normal_quantiles_give_a_line_with_their_location_and_scale():
  fit = qq_linearity(np.stack([3.0 + 2.0 * normal_scores(100_001), -normal_scores(100_001)]))
  np.testing.assert_allclose(fit.r_squared, 1.0, atol=1e-6)
  np.testing.assert_allclose(fit.location, [3.0, 0.0], atol=1e-3)
  np.testing.assert_allclose(fit.scale, [2.0, 1.0], atol=1e-3)


def test_r_squared_matches_a_regression_by_polyfit():
  rewards = np.random.default_rng(0).gamma(2.0, size=(5, 64))
  levels = np.linspace(0.7, 0.95, 9)
  fit = qq_linearity(rewards, levels)
  for row, r_squared in zip(rewards, fit.r_squared):
    quantiles, normal = np.quantile(row, levels), ndtri(levels)
    residual = quantiles - np.polyval(np.polyfit(normal, quantiles, 1), normal)
    expected = 1 - (residual**2).sum() / ((quantiles - quantiles.mean()) ** 2).sum()
    np.testing.assert_allclose(r_squared, expected, rtol=1e-10)


def test_affine_changes_leave_r_squared_alone():
  rewards = np.random.default_rng(1).normal(size=(4, 50))
  np.testing.assert_allclose(
    qq_linearity(rewards).r_squared, qq_linearity(1000 + 7 * rewards).r_squared, rtol=1e-9
  )


def test_two_point_tails_are_not_linear():
  rewards = np.repeat([[0.0, 10.0]], [240, 16], axis=1)
  assert qq_linearity(rewards).r_squared[0] < 0.8


@pytest.mark.parametrize("constant", [0.0, 0.35, -1e6])
def test_constant_tail_is_left_out_and_counted(constant):
  rewards = np.stack([np.full(256, constant), normal_scores(256)])
  rewards[0, :100] -= np.arange(100)
  fit = qq_linearity(rewards)
  assert np.isnan(fit.r_squared[0])
  assert fit.num_constant == 1
  assert fit.summary()["share"] == 1.0


def test_all_constant_gives_nan_in_the_summary():
  assert np.isnan(qq_linearity(np.zeros((3, 20))).summary()["median"])


def test_calibration_under_normal_rewards_is_the_published_one():
  summary = qq_linearity(gaussian_reference(3000, 256)).summary()
  np.testing.assert_allclose(
    [summary["median"], summary["mean"], summary["p10"], summary["share"]],
    [0.986, 0.982, 0.967, 0.978],
    atol=0.008,
  )


@pytest.mark.parametrize(
  "levels", [[0.9, 0.95], [0.9, 0.8, 0.95], [0.0, 0.5, 0.9], [0.5, 0.9, 1.0]]
)
def test_impossible_probabilities_are_refused(levels):
  with pytest.raises(ValueError, match="probabilities"):
    qq_linearity(np.zeros((1, 10)), np.array(levels))
