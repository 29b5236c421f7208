import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tea_jax.advantages import bon_max_second, grpo, max_at_k
from tests.advantages.enumeration import POLICIES

GROUPS = {
  "distinct": np.array([0.3, -1.0, 2.5, 0.9, 0.1, -0.4, 1.7]),
  "tied": np.array([1.0, -1.0, 1.0, 0.5, 0.5, -1.0, 0.0]),
}


def by_enumeration(rewards: np.ndarray, k: int, leave_one_out: bool) -> np.ndarray:
  transformed = np.zeros(len(rewards))
  subsets = list(itertools.combinations(range(len(rewards)), k))
  for subset in subsets:
    for i in subset:
      transformed[i] += rewards[list(subset)].max()
      if leave_one_out:
        transformed[i] -= rewards[[j for j in subset if j != i]].max()
  return transformed / len(subsets)


@pytest.mark.parametrize("leave_one_out", [False, True])
@pytest.mark.parametrize("k", [1, 2, 3, 6, 7])
@pytest.mark.parametrize("rewards", GROUPS.values(), ids=GROUPS)
def test_transformed_rewards_match_enumeration(rewards, k, leave_one_out):
  if leave_one_out and k == 1:
    pytest.skip("that is rloo")
  rule = max_at_k(k=k, normalize=False, leave_one_out=leave_one_out)
  with jax.enable_x64(True):
    advantages = rule(jnp.asarray(rewards))
  np.testing.assert_allclose(advantages, by_enumeration(rewards, k, leave_one_out), atol=1e-12)


@pytest.mark.parametrize("leave_one_out", [False, True])
@pytest.mark.parametrize("k", [2, 3, 4])
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_gradient_is_that_of_the_expected_maximum_of_k(policy, k, leave_one_out):
  rule = max_at_k(k=k, normalize=False, leave_one_out=leave_one_out)
  gradient = policy.expected_gradient(rule, 4)
  np.testing.assert_allclose(gradient, policy.gradient_of_expected_maximum(k), atol=1e-11)


def test_sum_is_k_times_the_estimate_of_max_at_k():
  rewards = GROUPS["distinct"]
  estimate = np.mean([max(s) for s in itertools.combinations(rewards, 3)])
  total = np.sum(max_at_k(k=3, normalize=False)(rewards.astype(np.float32)))
  np.testing.assert_allclose(total, 3 * estimate, rtol=1e-6)


def test_k_one_is_grpo_z():
  rewards = np.random.default_rng(0).normal(size=(5, 12)).astype(np.float32)
  np.testing.assert_allclose(
    max_at_k(k=1)(rewards), grpo(normalize=True)(rewards), rtol=1e-5, atol=1e-6
  )


def test_leave_one_out_with_k_equal_m_is_bon_max_second():
  rewards = np.random.default_rng(0).normal(size=(5, 12)).astype(np.float32)
  np.testing.assert_allclose(
    max_at_k(k=12, normalize=False, leave_one_out=True)(rewards),
    bon_max_second()(rewards),
    atol=1e-6,
  )


def test_k_equal_m_gives_zeros_and_is_refused_for_training():
  rule = max_at_k(k=7)
  np.testing.assert_array_equal(rule(GROUPS["distinct"].astype(np.float32)), 0)
  with pytest.raises(ValueError, match=r"num_rollouts=7 .* use num_rollouts >= 8"):
    rule.check_num_rollouts(7)
  rule.check_num_rollouts(8)


def test_default_k_is_half_the_group():
  rewards = np.random.default_rng(0).normal(size=(5, 12)).astype(np.float32)
  np.testing.assert_array_equal(max_at_k()(rewards), max_at_k(k=6)(rewards))


def test_large_groups_stay_finite_and_exact():
  # Binomials of 4096 overflow float64: with rewards 0 and 1 the transformed reward is known.
  rewards = np.zeros(4096, np.float32)
  rewards[17] = 1.0
  advantages = np.asarray(max_at_k(k=2048, normalize=False)(rewards))
  share = 2048 / 4096  # a subset that holds rollout i, and one that holds i and the best
  np.testing.assert_allclose(advantages[17], share, rtol=1e-5)
  np.testing.assert_allclose(np.delete(advantages, 17), share * 2047 / 4095, rtol=1e-5)


def test_bad_k_is_refused():
  with pytest.raises(ValueError, match="k=0"):
    max_at_k(k=0)
  with pytest.raises(ValueError, match="rloo"):
    max_at_k(k=1, leave_one_out=True)
  with pytest.raises(ValueError, match=r"k=5 exceeds num_rollouts=4"):
    max_at_k(k=5)(np.zeros(4, np.float32))
