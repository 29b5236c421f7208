"""Shaped rewards and influences: the exact gradient identity, worked values, laws, extremes."""

from __future__ import annotations

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import special

from tea_jax.tail import (
  TailVector,
  best_of_n_value,
  expected_maximum,
  maximum_influence,
  shaped_reward,
  tail_constants,
  tail_influence,
  tail_vector,
)

SETTING = {"tail_fraction": 0.25, "budget": 128}


def _population_tail(loc, scale, tail_fraction, budget):
  c = tail_constants(tail_fraction, budget)
  return TailVector(
    np.float64(loc + scale * c.quantile),
    np.float64(loc + scale * c.mills_ratio),
    np.float64(scale * np.sqrt(c.tail_variance)),
  )


def _normal(*shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _tail_quadrature(quantile):
  """Nodes and weights of the standard normal above a quantile."""
  nodes, weights = np.polynomial.legendre.leggauss(200)
  draws = quantile + 7.0 * (nodes + 1.0)
  return draws, 7.0 * weights * np.exp(-0.5 * draws**2) / math.sqrt(2.0 * math.pi)


@pytest.mark.parametrize("tail_fraction, budget", [(0.25, 128), (0.1, 256), (0.5, 10**6)])
@pytest.mark.parametrize("loc, scale", [(0.0, 1.0), (-3.0, 0.2)])
def test_mean_of_shaped_reward_times_score_is_the_gradient_of_the_value(
  tail_fraction, budget, loc, scale
):
  # d/d(loc, scale) of loc + c_N scale, exactly, for any Gaussian.
  with jax.enable_x64(True):
    draws, weights = _tail_quadrature(tail_constants(tail_fraction, budget).quantile)
    rewards = loc + scale * draws
    tail = _population_tail(loc, scale, tail_fraction, budget)
    psi = shaped_reward(rewards, tail, tail_fraction=tail_fraction, budget=budget)
    scores = np.stack([draws, draws**2 - 1.0]) / scale
    gradient = scores @ (weights * np.asarray(psi))
  np.testing.assert_allclose(gradient, [1.0, expected_maximum(budget)], rtol=1e-11)


@pytest.mark.parametrize("budget", [128, 10**6])
def test_mean_of_influence_times_score_is_the_gradient_of_the_expected_maximum(budget):
  with jax.enable_x64(True):
    draws = np.linspace(-10.0, 10.0, 2001)
    weights = 0.01 * np.exp(-0.5 * draws**2) / math.sqrt(2.0 * math.pi)
    rewards = 5.0 + 2.0 * draws
    tail = _population_tail(5.0, 2.0, 0.25, budget)
    influence = np.asarray(tail_influence(rewards, tail, tail_fraction=0.25, budget=budget))
    moments = np.stack([np.ones_like(draws), draws / 2.0, (draws**2 - 1.0) / 2.0])
    gradient = moments @ (weights * influence)
  # The interpolation error is at most 1e-9 N of a standard deviation.
  np.testing.assert_allclose(gradient, [0.0, 1.0, expected_maximum(budget)], atol=2e-9 * budget)


def test_best_of_n_value_of_a_gaussian_is_its_expected_maximum(float64):
  for alpha, budget in ((0.25, 128), (0.01, 10**5)):
    value = best_of_n_value(
      _population_tail(2.0, 3.0, alpha, budget), tail_fraction=alpha, budget=budget
    )
    assert value == pytest.approx(2.0 + 3.0 * expected_maximum(budget), rel=1e-12)


def test_shaped_reward_by_hand():
  tail = TailVector(jnp.float32(1.0), jnp.float32(2.0), jnp.float32(0.5))
  kappa = 2.692398465223154
  psi = shaped_reward(jnp.array([0.9, 1.0, 1.5, 4.0]), tail, **SETTING)
  by_hand = [0, 0, 4 * (0.5 + kappa * (0.25 - 1)), 4 * (3 + kappa * (4 - 1))]
  np.testing.assert_allclose(psi, by_hand, rtol=1e-6)
  assert psi[2] < 0  # just above the threshold, where kappa (mean - threshold) > scale


def test_influence_has_its_limits():
  with jax.enable_x64(True):
    values = jnp.array([-1e30, -40.0, 40.0, 1e6])
    g = maximum_influence(values, 128)
    lowest = 128 * (expected_maximum(127) - expected_maximum(128))
    highest = 128 * (np.array([40.0, 1e6]) - expected_maximum(128))
  np.testing.assert_allclose(g[:2], lowest, rtol=1e-10)
  np.testing.assert_allclose(g[2:], highest, rtol=1e-10)


@pytest.mark.parametrize("budget", [2, 128, 10**7])
def test_derivative_of_the_influence_is_n_times_the_law_of_the_others(budget):
  with jax.enable_x64(True):
    values = jnp.linspace(-3.0, 8.0, 57)
    slopes = jax.vmap(jax.grad(lambda u: maximum_influence(u, budget)))(values)
    exact = np.exp((budget - 1) * special.log_ndtr(np.asarray(values)))
  np.testing.assert_allclose(slopes / budget, exact, atol=3e-6)


@pytest.mark.parametrize("budget", [128, 10**7])
@pytest.mark.parametrize("function", [shaped_reward, tail_influence])
def test_float32_agrees_with_float64(function, budget):
  rewards = _normal(8, 64)
  setting = {"tail_fraction": 0.25, "budget": budget}
  single = function(rewards, tail_vector(rewards, 0.25), **setting)
  with jax.enable_x64(True):
    rewards = rewards.astype(np.float64)
    double = np.asarray(function(rewards, tail_vector(rewards, 0.25), **setting))
  size = np.abs(double).max(axis=-1, keepdims=True)
  # 1e-6 when compiled as users run it; the tests compile without most optimisations.
  np.testing.assert_allclose(single / size, double / size, atol=5e-6)


@pytest.mark.parametrize("function", [shaped_reward, tail_influence])
def test_constant_groups_give_one_value_and_finite_derivatives(function):
  for value in (0.35, 1e6, 1e30):
    rewards = jnp.full(16, value)
    out = function(rewards, tail_vector(rewards, 0.25), **SETTING)
    np.testing.assert_array_equal(out, out[0])
    assert abs(out[0]) <= 1e-10
    gradient = jax.jit(jax.jacrev(lambda r: function(r, tail_vector(r, 0.25), **SETTING)))(rewards)
    chex.assert_tree_all_finite(gradient)


@pytest.mark.parametrize("function", [shaped_reward, tail_influence])
def test_a_fit_of_no_scale_stays_finite_on_other_rewards(function):
  tail = tail_vector(jnp.full(16, 0.35), 0.25)
  chex.assert_tree_all_finite(function(_normal(16), tail, **SETTING))


def test_shaped_reward_of_a_group_with_one_rollout_is_zero():
  rewards = jnp.array([[3.0], [-1e6]])
  psi = shaped_reward(rewards, tail_vector(rewards, 0.25), **SETTING)
  np.testing.assert_array_equal(psi, 0.0)


@pytest.mark.parametrize("unit", [1e-6, 1e6, 1e30])
@pytest.mark.parametrize("function", [shaped_reward, tail_influence])
def test_any_unit_of_reward_gives_the_same_shape(function, unit):
  rewards = _normal(4, 16)
  base = function(rewards, tail_vector(rewards, 0.25), **SETTING)
  scaled = rewards * np.float32(unit)
  moved = function(scaled, tail_vector(scaled, 0.25), **SETTING)
  np.testing.assert_allclose(moved / np.float32(unit), base, rtol=1e-4, atol=1e-4)


REWARDS = hnp.arrays(np.float32, 16, elements=st.floats(-8, 8, width=16), unique=True)


@given(REWARDS, st.integers(-8, 8), st.sampled_from([0.25, 2.0]), st.permutations(range(16)))
@settings(deadline=None, max_examples=50)
def test_shaped_reward_follows_permutation_shift_and_scale(rewards, shift, scale, order):
  # Multiples of 1/4, so that shift and scale are exact.
  rewards = np.round(rewards * 4) / 4
  base = np.asarray(shaped_reward(rewards, tail_vector(rewards, 0.25), **SETTING))
  moved = (rewards * np.float32(scale) + np.float32(shift))[np.array(order)]
  psi = shaped_reward(moved, tail_vector(moved, 0.25), **SETTING)
  np.testing.assert_allclose(psi, scale * base[np.array(order)], rtol=1e-3, atol=1e-3)


def test_results_keep_the_dtype_of_the_rewards():
  rewards = jnp.asarray(_normal(16), jnp.bfloat16)
  tail = tail_vector(rewards, 0.25)
  for function in (shaped_reward, tail_influence):
    chex.assert_type(function(rewards, tail, **SETTING), jnp.bfloat16)
    exact = function(rewards.astype(jnp.float32), tail, **SETTING)
    np.testing.assert_allclose(
      np.asarray(function(rewards, tail, **SETTING), np.float32), exact, rtol=1e-2, atol=1e-2
    )


def test_one_population_tail_serves_many_groups():
  tail = _population_tail(0.0, 1.0, 0.25, 128)
  chex.assert_shape(shaped_reward(_normal(3, 5, 16), tail, **SETTING), (3, 5, 16))


def test_a_tail_of_other_groups_is_refused():
  tail = tail_vector(_normal(3, 16), 0.25)
  with pytest.raises(ValueError, match=r"tail.threshold of shape \(3,\) does not fit"):
    shaped_reward(_normal(2, 16), tail, **SETTING)


def test_a_budget_too_small_is_refused_everywhere():
  rewards = _normal(16)
  tail = tail_vector(rewards, 0.25)
  for function in (shaped_reward, tail_influence):
    with pytest.raises(ValueError, match="use budget >= 7 "):
      function(rewards, tail, tail_fraction=0.25, budget=6)
  with pytest.raises(ValueError, match="use budget >= 7 "):
    best_of_n_value(tail, tail_fraction=0.25, budget=6)
