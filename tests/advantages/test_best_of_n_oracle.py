import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tea_jax.advantages import best_of_n_oracle

POOLS = {
  "distinct": np.array([0.3, -1.2, 2.0, 0.7, 0.1]),
  "tied": np.array([1.0, -0.5, 1.0, 0.2]),
  "all_tied_at_the_top": np.array([2.0, 2.0, -1.0, 2.0]),
}


def by_enumeration(pool: np.ndarray, budget: int) -> np.ndarray:
  draws = np.array(list(itertools.product(pool, repeat=budget)))
  expected = draws.max(-1).mean()
  if budget == 1:
    return pool - expected
  others = np.array(list(itertools.product(pool, repeat=budget - 1))).max(-1)
  return np.array([np.maximum(r, others).mean() - expected for r in pool])


@pytest.mark.parametrize("budget", [1, 2, 3, 4])
@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
def test_advantages_match_enumeration_of_all_draws(pool, budget):
  with jax.enable_x64(True):
    advantages = best_of_n_oracle(budget=budget)(jnp.asarray(pool))
  np.testing.assert_allclose(advantages, budget * by_enumeration(pool, budget), atol=1e-12)


def test_advantages_are_the_gradient_of_the_expected_maximum():
  pool, budget, step = np.random.default_rng(0).normal(size=9), 6, 1e-5

  def expected_maximum(logits):
    probabilities = np.exp(logits) / np.exp(logits).sum()
    order = np.argsort(pool)
    cumulative = np.cumsum(probabilities[order])
    below = np.concatenate([[0.0], cumulative[:-1]])
    return np.sum(pool[order] * (cumulative**budget - below**budget))

  differences = [
    (expected_maximum(step * unit) - expected_maximum(-step * unit)) / (2 * step)
    for unit in np.eye(len(pool))
  ]
  with jax.enable_x64(True):
    advantages = best_of_n_oracle(budget=budget)(jnp.asarray(pool))
  np.testing.assert_allclose(np.asarray(advantages) / len(pool), differences, atol=1e-9)


def test_advantages_have_mean_zero_and_grow_with_the_reward():
  pool = np.random.default_rng(1).normal(size=512).astype(np.float32)
  advantages = np.asarray(best_of_n_oracle(budget=128)(pool), np.float64)
  assert abs(advantages.mean()) < 1e-5
  assert np.all(np.diff(advantages[np.argsort(pool)]) >= 0)
  unscaled = best_of_n_oracle(budget=128, scaled=False)(pool)
  np.testing.assert_allclose(advantages, 128 * np.asarray(unscaled), rtol=1e-5)


def test_float32_agrees_with_float64_for_large_budgets():
  pool = np.random.default_rng(1).normal(size=512)
  rule = best_of_n_oracle(budget=1024)
  single = np.asarray(rule(pool.astype(np.float32)))
  with jax.enable_x64(True):
    double = np.asarray(rule(jnp.asarray(pool)))
  np.testing.assert_allclose(single, double, rtol=1e-4, atol=1e-4 * np.abs(double).max())


def test_budget_must_be_positive():
  with pytest.raises(ValueError, match="budget=0"):
    best_of_n_oracle(budget=0)
