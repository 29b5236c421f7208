import itertools

import jax
import numpy as np
import pytest

from tea_jax import tail
from tea_jax.advantages import prefix_tea, subset_tea
from tests.advantages.cases import SHAPE, make, normal_rewards
from tests.advantages.test_tea import KAPPA_QUARTER_128

REWARDS = normal_rewards(SHAPE)
KEY = jax.random.key(0)


def positive_psi(rewards, alpha=0.25, kappa=KAPPA_QUARTER_128):
  rewards = np.asarray(rewards, np.float64)
  top = np.sort(rewards)[::-1][: int(np.ceil(alpha * len(rewards)))]
  q, mean, scale = top[-1], top.mean(), top.std()
  bend = kappa / (2 * scale) * ((rewards - mean) ** 2 - (q - mean) ** 2)
  return np.where(rewards >= q, np.maximum(rewards - q + bend, 0) / alpha, 0.0)


def reference_prefix_tea(rewards, sizes, weights):
  m = len(rewards)
  total = np.zeros(m)
  for size, weight in zip(sizes, weights):
    total[:size] += weight * m / size * positive_psi(rewards[:size])
  return total - total.mean()


def test_prefix_tea_matches_its_definition():
  sizes = tail.compatible_prefixes(19, 0.25)
  assert sizes == (7, 11, 15, 19)
  weights = tail.cancellation_weights(sizes, 2)
  expected = [reference_prefix_tea(r, sizes, weights) for r in REWARDS[:3]]
  actual = prefix_tea(shuffle=False)(REWARDS)[:3]
  np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-3)


def test_prefix_tea_with_one_prefix_is_tea():
  rule = prefix_tea(fractions=(1.0,), order=0)
  np.testing.assert_allclose(rule(REWARDS, key=KEY), make("tea")(REWARDS), rtol=1e-4, atol=1e-5)


def test_subset_tea_with_the_whole_group_is_tea():
  rule = subset_tea(fractions=(1.0,), order=0, num_orders=1)
  np.testing.assert_allclose(rule(REWARDS, key=KEY), make("tea")(REWARDS), rtol=1e-4, atol=1e-5)


def test_subset_tea_approaches_the_average_over_all_subsets():
  rewards, m = REWARDS[0, :9], 9
  sizes = tail.compatible_prefixes(m, 0.25, (0.5, 1.0))
  assert sizes == (5, 9)
  weights = tail.cancellation_weights(sizes, 1)
  total = weights[1] * positive_psi(rewards)
  subsets = list(itertools.combinations(range(m), 5))
  for subset in map(list, subsets):
    total[subset] += weights[0] * m / 5 * positive_psi(rewards[subset]) / len(subsets)
  expected = total - total.mean()
  actual = subset_tea(num_orders=20_000)(rewards, key=KEY)
  np.testing.assert_allclose(actual, expected, atol=0.02 * np.abs(expected).max())


def test_masked_subsets_are_drawn_from_the_rollouts_that_count():
  where = np.zeros(SHAPE, bool)
  where[:, ::2] = True  # ten of nineteen: legal subsets of 6 and 10
  spoiled = np.where(where, REWARDS, np.nan)
  rule = subset_tea(num_orders=2000)
  masked = np.asarray(rule(spoiled, key=KEY, where=where))[0, ::2]
  alone = np.asarray(rule(REWARDS[0, ::2], key=KEY))
  np.testing.assert_allclose(masked, alone, atol=0.1 * np.abs(alone).max())


def test_masked_group_without_legal_prefixes_uses_fewer_rollouts():
  # 16 rollouts have no four prefixes with tails of two; 17 do, and 18 and 19; 20 do not.
  rule = prefix_tea(shuffle=False)
  rewards = normal_rewards((2, 21))
  where = np.ones((2, 21), bool)
  where[:, 20] = False
  advantages = np.asarray(rule(rewards, where=where))
  weights = tail.cancellation_weights((7, 11, 15, 19), 2)
  total = np.zeros(20)
  for size, weight in zip((7, 11, 15, 19), weights):
    total[:size] += weight * 20 / size * positive_psi(rewards[0, :size])
  np.testing.assert_allclose(advantages[0, :20], total - total.mean(), rtol=1e-3, atol=1e-3)


def test_illegal_arguments_are_refused_when_the_rule_is_made():
  for factory in (prefix_tea, subset_tea):
    with pytest.raises(ValueError, match="budget=2"):
      factory(budget=2)
    with pytest.raises(ValueError, match="order=4"):
      factory(order=4)
    with pytest.raises(ValueError, match="increasing"):
      factory(fractions=(0.5, 0.25, 1.0))
    with pytest.raises(ValueError, match="objective"):
      factory(objective="mean")
  with pytest.raises(ValueError, match="num_orders=0"):
    subset_tea(num_orders=0)


def test_groups_too_small_for_the_prefixes_are_refused():
  with pytest.raises(ValueError, match=r"num_rollouts=16 .* use num_rollouts=17"):
    prefix_tea(shuffle=False)(np.zeros(16, np.float32))
  assert prefix_tea().minimum_rollouts == 17


def test_variance_weights_are_an_option():
  rule = prefix_tea(objective="variance", shuffle=False)
  sizes = (7, 11, 15, 19)
  weights = tail.cancellation_weights(sizes, 2, objective="variance")
  expected = reference_prefix_tea(REWARDS[0], sizes, weights)
  np.testing.assert_allclose(rule(REWARDS)[0], expected, rtol=1e-3, atol=1e-3)
