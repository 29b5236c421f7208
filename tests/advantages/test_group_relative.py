import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tea_jax.advantages import bon_max_mean, bon_max_second, grpo, rloo
from tests.advantages.enumeration import POLICIES

REWARDS = np.array([1.0, 4.0, -2.0, 5.0, 2.0], np.float32)


def test_grpo_subtracts_the_mean():
  np.testing.assert_allclose(grpo()(REWARDS), [-1, 2, -4, 3, 0], atol=1e-6)


def test_grpo_z_divides_by_the_chosen_deviation():
  centred = np.array([-1, 2, -4, 3, 0])
  population = grpo(normalize=True)(REWARDS)
  np.testing.assert_allclose(population, centred / np.sqrt(30 / 5), rtol=1e-6)
  sample = grpo(normalize=True, ddof=1, epsilon=0.5)(REWARDS)
  np.testing.assert_allclose(sample, centred / (np.sqrt(30 / 4) + 0.5), rtol=1e-6)


def test_rloo_subtracts_the_mean_of_the_others():
  expected = [r - np.delete(REWARDS, i).mean() for i, r in enumerate(REWARDS)]
  np.testing.assert_allclose(rloo()(REWARDS), expected, rtol=1e-6)


def test_bon_max_rules_reward_the_best_rollout_only():
  np.testing.assert_allclose(bon_max_mean()(REWARDS), [0, 0, 0, 3, 0], atol=1e-6)
  np.testing.assert_allclose(bon_max_second()(REWARDS), [0, 0, 0, 1, 0], atol=1e-6)


def test_a_tie_at_the_top_goes_to_the_first_and_gives_second_nothing():
  tied = np.array([0.0, 3.0, 1.0, 3.0], np.float32)
  np.testing.assert_allclose(bon_max_mean()(tied), [0, 1.25, 0, 0], atol=1e-6)
  np.testing.assert_array_equal(bon_max_second()(tied), 0)


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_grpo_gradient_is_the_policy_gradient_times_m_minus_1_over_m(policy):
  gradient = policy.expected_gradient(grpo(), 4) / 4
  expected = policy.gradient_of_expected_maximum(1) * 3 / 4
  np.testing.assert_allclose(gradient, expected, atol=1e-12)


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_rloo_gradient_is_the_policy_gradient(policy):
  gradient = policy.expected_gradient(rloo(), 4) / 4
  np.testing.assert_allclose(gradient, policy.gradient_of_expected_maximum(1), atol=1e-12)


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_bon_max_second_sums_to_the_gradient_of_the_expected_maximum(policy):
  gradient = policy.expected_gradient(bon_max_second(), 4)
  np.testing.assert_allclose(gradient, policy.gradient_of_expected_maximum(4), atol=1e-12)


def test_tiny_and_huge_rewards_keep_their_relative_advantages():
  base = np.asarray(grpo()(REWARDS))
  for scale in (1e-30, 1e37):
    scaled = grpo()((REWARDS * np.float32(scale)).astype(np.float32))
    np.testing.assert_allclose(np.asarray(scaled, np.float64) / scale, base, rtol=1e-5, atol=1e-6)
  standardized = np.asarray(grpo(normalize=True)(REWARDS))
  huge = grpo(normalize=True)(REWARDS * np.float32(1e37))
  np.testing.assert_allclose(huge, standardized, rtol=1e-5)


def test_small_spread_on_a_large_offset_is_kept():
  rewards = np.float32(1e4) + np.array([0.0, 0.5, 0.25, 0.25], np.float32)
  np.testing.assert_array_equal(grpo()(rewards), [-0.25, 0.25, 0, 0])


def test_bfloat16_is_computed_in_float32():
  rewards = jnp.asarray(np.linspace(0, 1, 64), jnp.bfloat16)
  exact = np.asarray(rewards, np.float64)
  advantages = grpo()(rewards)
  assert advantages.dtype == jnp.bfloat16
  np.testing.assert_allclose(
    np.asarray(advantages, np.float64), exact - exact.mean(), atol=0.004 * 0.5
  )


def test_float64_stays_float64():
  with jax.enable_x64(True):
    advantages = grpo()(jnp.asarray(REWARDS, jnp.float64))
    assert advantages.dtype == jnp.float64


def test_arguments_out_of_range_are_refused():
  with pytest.raises(ValueError, match="ddof=2"):
    grpo(ddof=2)
  with pytest.raises(ValueError, match="epsilon=-1"):
    grpo(epsilon=-1)
