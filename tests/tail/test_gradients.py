"""Gradient estimators: enumeration of discrete laws, orders of bias and variance, invariances."""

from __future__ import annotations

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from tea_jax.tail import (
  TailVector,
  cancellation_weights,
  compatible_prefixes,
  cross_fitted_gradient,
  direct_gradient,
  prefix_gradient,
  shaped_reward,
  subset_averaged_gradient,
  tail_constants,
  tail_vector,
)

SETTING = {"tail_fraction": 0.25, "budget": 128}
# A wide floor keeps the fits of a discrete law, of which many have no scale, comparable.
DISCRETE = {"tail_fraction": 0.5, "budget": 16, "scale_floor": 0.5}
ESTIMATORS = {
  "direct": functools.partial(direct_gradient, **SETTING),
  "cross_fitted": functools.partial(cross_fitted_gradient, **SETTING),
  "prefix": functools.partial(prefix_gradient, fractions=(0.5, 1.0), order=1, **SETTING),
  "subset_averaged": functools.partial(
    subset_averaged_gradient, key=jax.random.key(0), num_orders=4, **SETTING
  ),
}


def _group(num_rollouts, seed=0):
  rewards = np.random.default_rng(seed).standard_normal(num_rollouts).astype(np.float32)
  return rewards, np.stack([np.sin(rewards), np.cos(rewards)], axis=-1)


def _numpy_shaped(rewards, fitted, alpha, kappa, floor):
  count = -int(-alpha * len(fitted) // 1)
  top = np.sort(np.asarray(fitted, np.float64))[-count:]
  q, mu, sigma = top[0], top.mean(), max(top.std(), floor)
  bend = kappa / (2 * sigma) * ((rewards - mu) ** 2 - (q - mu) ** 2)
  return np.where(rewards >= q, (rewards - q + bend) / alpha, 0.0)


def test_estimators_match_their_formulas():
  rewards, scores = _group(32)
  kappa = tail_constants(**SETTING).curvature
  psi = functools.partial(_numpy_shaped, alpha=0.25, kappa=kappa, floor=1e-12)
  direct = psi(rewards, rewards) @ scores / 32
  np.testing.assert_allclose(ESTIMATORS["direct"](rewards, scores), direct, rtol=1e-4)

  def cross(n):
    return psi(rewards[16 : 16 + n], rewards[:n]) @ scores[16 : 16 + n] / n

  np.testing.assert_allclose(ESTIMATORS["cross_fitted"](rewards, scores), cross(16), rtol=1e-4)
  expected = 2 * cross(16) - cross(8)
  np.testing.assert_allclose(ESTIMATORS["prefix"](rewards, scores), expected, rtol=1e-4)


def test_subset_average_over_all_orders_is_the_u_statistic():
  # 8 rollouts, halves of 4: with many orders the mean over all 70 subsets.
  rewards, scores = _group(8, seed=3)
  setting = {"tail_fraction": 0.5, "budget": 16}
  kappa = tail_constants(**setting).curvature
  psi = functools.partial(_numpy_shaped, alpha=0.5, kappa=kappa, floor=1e-12)
  half = np.mean(
    [
      psi(rewards[list(s)], rewards[list(s)]) @ scores[list(s)] / 4
      for s in itertools.combinations(range(8), 4)
    ],
    axis=0,
  )
  whole = psi(rewards, rewards) @ scores / 8
  averaged = subset_averaged_gradient(
    rewards, scores, key=jax.random.key(1), num_orders=40_000, **setting
  )
  np.testing.assert_allclose(averaged, 2 * whole - half, atol=0.02)


def _expectation(estimator, num_rollouts, probability):
  """Exact mean over independent rewards in {0, 1}, with scores (1, r)."""
  outcomes = np.array(list(itertools.product([0.0, 1.0], repeat=num_rollouts)), np.float32)
  successes = outcomes.sum(axis=1)
  weights = probability**successes * (1 - probability) ** (num_rollouts - successes)
  scores = np.stack([np.ones_like(outcomes), outcomes - probability], axis=-1)
  return weights @ np.asarray(jax.jit(jax.vmap(estimator))(outcomes, scores), np.float64)


def test_cross_fitting_is_unbiased_for_the_shaped_reward_of_its_fit():
  # E over (A, B) of the estimator = E over A of E over r of psi(r; A) score, both by enumeration.
  probability = 0.3
  estimator = functools.partial(cross_fitted_gradient, **DISCRETE)
  kappa = tail_constants(0.5, 16).curvature
  expected = np.zeros(2)
  for fitted in itertools.product([0.0, 1.0], repeat=4):
    chance = probability ** sum(fitted) * (1 - probability) ** (4 - sum(fitted))
    psi = _numpy_shaped(np.array([0.0, 1.0]), fitted, 0.5, kappa, 0.5)
    law = np.array([1 - probability, probability])
    expected += chance * np.array([law @ psi, law @ (psi * [-probability, 1 - probability])])
  np.testing.assert_allclose(_expectation(estimator, 8, probability), expected, rtol=1e-5)


def test_prefixes_have_the_expectation_of_their_combination():
  # Sizes (4, 6) of a half of 6: only the distribution of A_1..A_n matters to each term.
  sizes = compatible_prefixes(6, 0.5, (2 / 3, 1.0))
  assert sizes == (4, 6)
  weights = cancellation_weights(sizes, 1)
  estimator = functools.partial(prefix_gradient, order=1, fractions=(2 / 3, 1.0), **DISCRETE)
  cross = functools.partial(cross_fitted_gradient, **DISCRETE)
  terms = [_expectation(cross, 2 * size, 0.3) for size in sizes]
  np.testing.assert_allclose(_expectation(estimator, 12, 0.3), weights @ terms, rtol=1e-4)


@pytest.mark.parametrize("num_orders", [1, 3])
def test_subset_averaging_leaves_the_expectation_alone(num_orders):
  # For fixed orders, however few: the rollouts are exchangeable.
  estimator = functools.partial(
    subset_averaged_gradient, key=jax.random.key(2), num_orders=num_orders, **DISCRETE
  )
  direct = functools.partial(direct_gradient, **DISCRETE)
  expected = 2 * _expectation(direct, 8, 0.3) - _expectation(direct, 4, 0.3)
  np.testing.assert_allclose(_expectation(estimator, 8, 0.3), expected, rtol=1e-5)


def test_weights_cancel_the_bias_of_a_discrete_law_order_by_order():
  # Rewards in {0, 1}, P(1) = 1/5, the upper half as tail: its threshold is 0 but for a chance
  # exponentially small in n, and the fit a smooth function of the number of ones, whose law is
  # known. So the bias is exact and its orders show without noise.
  def mean_of_shaped(size):
    fits = (np.arange(size) < np.arange(size + 1)[:, None]).astype(np.float64)
    tail = jax.jit(lambda fits: tail_vector(fits, 0.5, scale_floor=0.1))(fits)
    shaped = shaped_reward(np.ones((size + 1, 1)), tail, tail_fraction=0.5, budget=16)[:, 0]
    return stats.binom.pmf(np.arange(size + 1), size, 0.2) @ np.asarray(shaped)

  with jax.enable_x64(True):
    limit = TailVector(np.float64(0), np.float64(0.4), np.sqrt(0.24))
    target = float(shaped_reward(np.ones(1), limit, tail_fraction=0.5, budget=16)[0])
    bias = {size: mean_of_shaped(size) - target for size in (64, 128, 256, 512)}
  for order in (0, 1, 2):
    combined = []
    for largest in (256, 512):
      sizes = [largest // 2**j for j in reversed(range(order + 1))]
      combined.append(cancellation_weights(sizes, order) @ [bias[size] for size in sizes])
    observed = np.log2(abs(combined[0] / combined[1]))
    # 1.02, 2.11, 3.46: the next order still shows in the last.
    assert order + 0.9 < observed < order + 1.6, combined


def _moments(estimator, num_rollouts, num_groups, seed=0):
  """Mean, its standard error, and total variance of an estimator on the Gaussian model."""

  @jax.jit
  def block(key):
    draw, order = jax.random.split(key)
    rewards = jax.random.normal(draw, (num_groups // 20, num_rollouts))
    scores = jnp.stack([jnp.sin(rewards), jnp.cos(rewards)], axis=-1)
    keys = jax.random.split(order, rewards.shape[0])
    gradients = jax.vmap(estimator)(rewards, scores, keys)
    return gradients.mean(axis=0), gradients.var(axis=0).sum()

  keys = jax.random.split(jax.random.key(seed), 20)
  means, variances = zip(*(block(key) for key in keys), strict=True)
  return np.mean(means, axis=0, dtype=np.float64), float(np.mean(variances))


def _target():
  """E[psi(r) (sin r, cos r)] for standard normal rewards, by quadrature."""
  c = tail_constants(**SETTING)
  nodes, weights = np.polynomial.legendre.leggauss(100)
  draws = c.quantile + 5.0 * (nodes + 1.0)
  density = 5.0 * weights * np.exp(-0.5 * draws**2) / np.sqrt(2 * np.pi)
  sigma = np.sqrt(c.tail_variance)
  bend = (draws - c.mills_ratio) ** 2 - (c.quantile - c.mills_ratio) ** 2
  psi = 4 * (draws - c.quantile + c.curvature / (2 * sigma) * bend)
  return np.array([density @ (psi * np.sin(draws)), density @ (psi * np.cos(draws))])


def _direct(rewards, scores, key):
  del key
  return direct_gradient(rewards, scores, **SETTING)


def _averaged(rewards, scores, key):
  return subset_averaged_gradient(rewards, scores, key=key, **SETTING)


@pytest.mark.slow
def test_direct_bias_and_variance_are_of_order_one_over_m():
  target = _target()
  means, variances = zip(*(_moments(_direct, m, 40_000) for m in (64, 256)), strict=True)
  bias = [np.linalg.norm(mean - target) for mean in means]
  # Standard errors of the two: 0.0015 and 0.0008.
  assert bias[0] == pytest.approx(0.083, abs=0.006)
  assert bias[1] == pytest.approx(0.0215, abs=0.003)
  assert variances[1] * 256 == pytest.approx(6.1, rel=0.03)
  assert np.log(variances[0] / variances[1]) / np.log(4) == pytest.approx(1.0, abs=0.12)


@pytest.mark.slow
def test_subset_averaging_cancels_bias_at_a_variance_within_twice_the_direct():
  target = _target()
  mean, variance = _moments(_averaged, 64, 40_000)
  _, direct_variance = _moments(_direct, 64, 40_000)
  assert np.linalg.norm(mean - target) == pytest.approx(0.012, abs=0.006)
  assert variance < 2 * direct_variance


@pytest.mark.slow
def test_prefixes_cancel_the_bias_that_cross_fitting_has():
  # The mean over B is known given A, which takes most of the noise away: only the fit is sampled.
  nodes, weights = np.polynomial.legendre.leggauss(64)

  @jax.jit
  def evaluate(key):
    fits = jax.random.normal(key, (100_000, 128))

    def mean_gradient(size):
      tail = tail_vector(fits[:, :size], 0.25)
      draws = tail.threshold[:, None] + 4.5 * (jnp.asarray(nodes, jnp.float32) + 1)
      density = 4.5 * weights / np.sqrt(2 * np.pi) * jnp.exp(-0.5 * draws**2)
      psi = density * shaped_reward(draws, tail, **SETTING)
      return jnp.stack([(psi * jnp.sin(draws)).sum(-1), (psi * jnp.cos(draws)).sum(-1)], -1)

    return jnp.stack([mean_gradient(size) for size in (64, 96, 128)])

  means = np.asarray(evaluate(jax.random.key(0)), np.float64)
  bias = means - _target()
  combined = np.tensordot(cancellation_weights((64, 96, 128), 1), bias, 1)
  error = np.sqrt(combined.var(axis=0).sum() / 100_000)
  direct_bias = np.linalg.norm(bias[2].mean(axis=0))
  assert direct_bias > 20 * np.sqrt(bias[2].var(axis=0).sum() / 100_000)
  assert np.linalg.norm(combined.mean(axis=0)) < 0.3 * direct_bias + 3 * error


@pytest.mark.parametrize("name", ["direct", "subset_averaged"])
def test_estimators_of_a_whole_group_do_not_depend_on_threshold_ties(name):
  rewards = jnp.repeat(jnp.array([0.0, 1.0, 2.0, 3.0]), 4)
  scores = jnp.ones((16, 1))
  order = np.random.default_rng(0).permutation(16)
  if name == "direct":
    np.testing.assert_allclose(
      ESTIMATORS[name](rewards[order], scores), ESTIMATORS[name](rewards, scores), rtol=1e-5
    )
  chex.assert_tree_all_finite(ESTIMATORS[name](rewards, scores))


@pytest.mark.parametrize("name", list(ESTIMATORS))
def test_shift_scale_and_linearity_in_the_scores(name):
  rewards, scores = _group(32)
  estimator = jax.jit(ESTIMATORS[name])
  base = np.asarray(estimator(rewards, scores))
  np.testing.assert_allclose(estimator(rewards + 4, scores), base, rtol=1e-3, atol=1e-3)
  np.testing.assert_allclose(estimator(rewards * 1e6, scores) / 1e6, base, rtol=1e-3, atol=1e-4)
  np.testing.assert_allclose(estimator(rewards, -3 * scores), -3 * base, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", list(ESTIMATORS))
def test_constant_groups_have_no_gradient(name):
  _, scores = _group(32)
  estimator = jax.jit(ESTIMATORS[name])
  for value in (0.35, -1e6, 1e30):
    np.testing.assert_array_equal(estimator(jnp.full(32, value), scores), 0.0)


@pytest.mark.parametrize("name", list(ESTIMATORS))
def test_vmap_over_prompts_matches_one_at_a_time_and_compiles_once(name):
  groups = [_group(32, seed) for seed in range(3)]
  rewards, scores = (np.stack(parts) for parts in zip(*groups))
  chex.clear_trace_counter()
  estimator = ESTIMATORS[name]
  one = chex.assert_max_traces(lambda r, s: estimator(r, s), n=1)
  mapped = jax.jit(jax.vmap(one))
  gradients = mapped(rewards, scores)
  chex.assert_shape(gradients, (3, 2))
  single = jax.jit(estimator)
  np.testing.assert_allclose(gradients[1], single(rewards[1], scores[1]), rtol=1e-4, atol=1e-5)
  mapped(rewards + 1, scores)


def test_averaging_more_orders_lowers_the_variance():
  rewards, scores = _group(32)
  keys = jax.random.split(jax.random.key(0), 200)

  def spread(num_orders):
    estimator = functools.partial(subset_averaged_gradient, num_orders=num_orders, **SETTING)
    return jax.jit(jax.vmap(lambda key: estimator(rewards, scores, key=key)))(keys).var(0).sum()

  assert spread(16) == pytest.approx(spread(1) / 16, rel=0.5)


def test_groups_that_cannot_be_split_are_refused(unchecked):
  rewards, scores = _group(33)
  for estimator in (cross_fitted_gradient, prefix_gradient):
    with pytest.raises(ValueError, match="num_rollouts=33 cannot be split"):
      estimator(rewards, scores, **SETTING)
  with pytest.raises(ValueError, match="num_orders=0"):
    subset_averaged_gradient(rewards, scores, key=jax.random.key(0), num_orders=0, **SETTING)
  with pytest.raises(AssertionError):
    direct_gradient(rewards, scores[:5], **SETTING)
