"""The exact parts of the Gaussian-tail diagnostic against independent integrals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import integrate, special

from tea_jax import tail as tails
from tea_jax.studies.gaussian_tail import controls as controls
from tea_jax.studies.gaussian_tail.simulation import population_tail

LAW = {"tail_fraction": 0.25, "budget": 128}


def sin_cos(values):
  return np.stack([np.sin(values), np.cos(values)], axis=-1)


def gaussian_score(values):
  return np.stack([values, values**2 - 1.0], axis=-1)


@pytest.mark.parametrize("tail", [(0.67, 1.27, 0.49), (-0.8, 0.6, 0.7), (2.2, 2.5, 0.05)])
def test_evaluation_half_is_integrated_as_adaptive_quadrature_does(tail):
  threshold, mean, scale = tail
  curvature = tails.tail_constants(0.25, 128).curvature

  def integrand(r, score):
    shaped = r - threshold
    shaped += curvature / (2 * scale) * ((r - mean) ** 2 - (threshold - mean) ** 2)
    return shaped / 0.25 * score(r) * math.exp(-r * r / 2) / math.sqrt(2 * math.pi)

  expected = [
    integrate.quad(integrand, threshold, 12.0, args=(score,), epsabs=1e-13)[0]
    for score in (math.sin, math.cos)
  ]
  actual = controls.expected_gradient(np.array(tail), sin_cos, **LAW)
  np.testing.assert_allclose(actual, expected, rtol=1e-11, atol=1e-13)


def test_evaluation_half_agrees_with_the_mean_of_the_library_estimator():
  tail = np.array([0.5, 1.2, 0.6])
  draws = np.random.default_rng(0).standard_normal(400_000)
  shaped = np.asarray(tails.shaped_reward(draws, tails.TailVector(*tail), **LAW))
  samples = shaped[:, None] * sin_cos(draws)
  error = samples.std(axis=0) / math.sqrt(len(draws))
  expected = controls.expected_gradient(tail, sin_cos, **LAW)
  assert np.all(np.abs(samples.mean(axis=0) - expected) < 4.5 * error)


def test_both_targets_are_exact_for_the_scores_of_a_gaussian():
  maximum = tails.expected_maximum(128)
  direct = controls.expected_gradient(population_tail(0.25), gaussian_score, **LAW)
  influence = controls.influence_gradient(gaussian_score, budget=128)
  np.testing.assert_allclose(direct, [1.0, maximum], rtol=1e-10)
  np.testing.assert_allclose(influence, [1.0, maximum], rtol=1e-7)


def test_influence_target_is_the_mean_of_the_library_influence():
  nodes, weights = np.polynomial.hermite_e.hermegauss(150)
  influence = np.asarray(tails.maximum_influence(nodes.astype(np.float32), 128), np.float64)
  expected = (influence * weights / math.sqrt(2 * math.pi)) @ sin_cos(nodes)
  np.testing.assert_allclose(controls.influence_gradient(sin_cos, budget=128), expected, atol=2e-4)


def test_order_statistic_of_two_draws_has_its_known_moments():
  mean, deviation, powers = controls.order_statistic_moments(2, 1)
  np.testing.assert_allclose(mean, 1.0 / math.sqrt(math.pi), rtol=1e-12)
  np.testing.assert_allclose(deviation, math.sqrt(1.0 - 1.0 / math.pi), rtol=1e-12)
  np.testing.assert_allclose(powers[:3], [1.0, 0.0, 1.0], atol=1e-12)


def test_moments_of_means_match_enumeration():
  values, draws = np.array([-1.0, 0.5, 2.0]), 3
  probability = np.array([0.5, 0.3, 0.2])
  x = values - probability @ values
  y = x**2 - probability @ x**2
  moments = {
    (i, j): np.array([probability @ (x**i * y**j)])
    for i in range(5)
    for j in range(5)
    if 2 <= i + j <= 4
  }
  actual = controls._moments_of_means(moments, draws)
  grids = np.stack(np.meshgrid(*[range(3)] * draws, indexing="ij"), axis=-1).reshape(-1, draws)
  mass = probability[grids].prod(axis=-1)
  a, b = x[grids].mean(axis=-1), y[grids].mean(axis=-1)
  for (i, j), value in actual.items():
    np.testing.assert_allclose(value, mass @ (a**i * b**j), atol=1e-13)


def test_moments_above_a_threshold_match_quadrature():
  threshold = 0.67
  mean, variance, moments = controls._excess_moments(np.array([threshold]))
  mills = math.exp(-0.5 * threshold**2) / math.sqrt(2 * math.pi) / special.ndtr(-threshold)
  np.testing.assert_allclose(mean, mills, rtol=1e-12)
  np.testing.assert_allclose(variance, 1 + threshold * mills - mills**2, rtol=1e-12)
  mass = special.ndtr(-threshold) * math.sqrt(2 * math.pi)
  for (i, j), value in moments.items():
    exact = integrate.quad(
      lambda r, i=i, j=j: (
        (r - mean[0]) ** i * ((r - mean[0]) ** 2 - variance[0]) ** j * math.exp(-r * r / 2) / mass
      ),
      threshold,
      14.0,
      epsabs=1e-13,
    )[0]
    np.testing.assert_allclose(value, exact, rtol=1e-9)


@pytest.mark.parametrize("num_rollouts", [12, 32, 128])
def test_tail_controls_have_mean_zero(num_rollouts):
  draws = np.random.default_rng(num_rollouts).standard_normal((60_000, num_rollouts))
  top = np.sort(draws, axis=-1)[:, -tails.tail_count(num_rollouts, 0.25) :]
  tail = np.stack([top[:, 0], top.mean(axis=-1), top.std(axis=-1)], axis=-1)
  features = controls.tail_controls(tail, num_rollouts, 0.25)
  assert features.shape[1] == (34 if top.shape[1] > 3 else 4)
  scores = features.mean(axis=0) / (features.std(axis=0) / math.sqrt(len(draws)))
  assert np.abs(scores).max() < 4.5


def test_controls_take_out_what_they_explain_and_add_no_bias():
  rng = np.random.default_rng(0)
  features = rng.standard_normal((4000, 3))
  response = 0.25 + features @ rng.standard_normal((3, 2)) + 1e-3 * rng.standard_normal((4000, 2))
  plain, plain_covariance = controls.controlled_mean(response, None)
  mean, covariance = controls.controlled_mean(response, features)
  assert np.trace(covariance) < 1e-5 * np.trace(plain_covariance)
  assert np.all(np.abs(mean - 0.25) < 5.0 * np.sqrt(np.diag(covariance)))
  assert np.abs(plain - 0.25).max() > np.abs(mean - 0.25).max()


def test_controls_are_left_alone_when_trials_are_few():
  rng = np.random.default_rng(0)
  features, response = rng.standard_normal((39, 2)), rng.standard_normal((39, 1))
  mean, _ = controls.controlled_mean(response, features)
  assert mean == controls.controlled_mean(response, None)[0]
