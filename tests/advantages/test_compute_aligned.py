import math

import jax.numpy as jnp
import numpy as np
import pytest

from tea_jax.advantages import cat_best_of_n, cat_majority, cat_pass_at_n, grpo

REWARDS = np.random.default_rng(0).normal(size=(4, 12)).astype(np.float32)
BINARY = (REWARDS > 0.3).astype(np.float32)
GRPO_Z = grpo(normalize=True)


def test_best_of_n_with_budget_one_is_grpo_z():
  np.testing.assert_allclose(cat_best_of_n(budget=1)(REWARDS), GRPO_Z(REWARDS), rtol=1e-6)


def test_pass_at_n_with_budget_one_is_grpo_z():
  rule = cat_pass_at_n(budget=1, probability="group", log_weighted=False)
  np.testing.assert_allclose(rule(BINARY), GRPO_Z(BINARY), rtol=1e-6)


def test_best_of_n_matches_its_formula():
  budget = 5
  below = (REWARDS[:, None, :] < REWARDS[:, :, None]).sum(-1) / 12
  weights = budget * below ** (budget - 1)
  weights = weights / weights.mean(-1, keepdims=True)
  centred = REWARDS - REWARDS.mean(-1, keepdims=True)
  expected = weights * centred / (REWARDS.std(-1, keepdims=True) + 1e-8)
  np.testing.assert_allclose(cat_best_of_n(budget=budget)(REWARDS), expected, rtol=1e-4, atol=1e-6)


def test_quantiles_of_ties_and_their_smoothing():
  rewards = np.array([1.0, 2.0, 2.0, 3.0], np.float32)
  centred = rewards - 2.0
  for quantile, share in {
    "strict": np.array([0, 1, 1, 3]) / 4,
    "rank": np.array([1, 2, 2, 4]) / 5,
    "laplace": np.array([1, 2, 2, 4]) / 6,
  }.items():
    rule = cat_best_of_n(budget=3, quantile=quantile, normalize=False, weight_normalization="none")
    np.testing.assert_allclose(rule(rewards), 3 * share**2 * centred, rtol=1e-5)


def test_huge_budget_puts_all_weight_on_the_best():
  advantages = np.array(cat_best_of_n(budget=10**6)(REWARDS))
  best = REWARDS.argmax(-1)
  z_scores = np.asarray(GRPO_Z(REWARDS))
  rows = np.arange(4)
  np.testing.assert_allclose(advantages[rows, best], 12 * z_scores[rows, best], rtol=1e-5)
  advantages[rows, best] = 0
  np.testing.assert_allclose(advantages, 0, atol=1e-6)


def test_best_of_n_of_binary_rewards_weighs_successes_as_pass_at_n():
  best = cat_best_of_n(budget=9, weight_normalization="none")(BINARY)
  passing = cat_pass_at_n(budget=9, probability="group", log_weighted=False, laplace=0.0)(BINARY)
  np.testing.assert_allclose(
    np.asarray(best)[BINARY == 1], np.asarray(passing)[BINARY == 1], rtol=1e-5
  )


def test_majority_of_one_vote_is_pass_at_n():
  for log_weighted in (False, True):
    majority = cat_majority(
      budget=9,
      threshold=1,
      log_weighted=log_weighted,
      weight_normalization="none",
      weight_clip=None,
    )(BINARY)
    passing = cat_pass_at_n(
      budget=9, probability="group", log_weighted=log_weighted, weight_clip=None
    )(BINARY)
    np.testing.assert_allclose(majority, passing, rtol=1e-5, atol=1e-6)


def test_pass_at_n_weighs_each_completion_by_its_probability():
  logprobs = np.log(np.random.default_rng(1).uniform(0.01, 0.9, REWARDS.shape)).astype(np.float32)
  p = np.exp(logprobs)
  z_scores = np.asarray(GRPO_Z(BINARY))
  raw = cat_pass_at_n(budget=6, log_weighted=False)(BINARY, logprobs=logprobs)
  np.testing.assert_allclose(raw, 6 * (1 - p) ** 5 * z_scores, rtol=1e-4, atol=1e-6)
  smooth = cat_pass_at_n(budget=6)(BINARY, logprobs=logprobs)
  expected = 6 * p * (1 - p) ** 5 / (1 - (1 - p) ** 6) * z_scores
  np.testing.assert_allclose(smooth, expected, rtol=1e-4, atol=1e-6)


def test_only_the_share_of_successes_leaves_a_solved_prompt_alone():
  """Half right, and each wrong completion rare: one sample in 16 is right already."""
  rewards = jnp.array([1.0, 0.0] * 4)
  logprobs = jnp.where(rewards == 1, math.log(0.5), math.log(0.01))
  z_scores = np.asarray(GRPO_Z(rewards))
  by_share = cat_pass_at_n(budget=16, probability="group")(rewards)
  assert np.max(np.abs(by_share / z_scores)) < 0.001
  by_completion = cat_pass_at_n(budget=16)(rewards, logprobs=logprobs)
  wrong = np.asarray(rewards) == 0
  assert np.all((by_completion / z_scores)[wrong] > 0.9)
  assert np.all((by_completion / z_scores)[~wrong] < 0.001)


def test_majority_weighs_prompts_at_the_tipping_point_most():
  rewards = np.zeros((3, 8), np.float32)
  rewards[0, :1], rewards[1, :4], rewards[2, :7] = 1, 1, 1
  answers = np.where(rewards == 1, 0, 1)
  advantages = cat_majority(budget=8)(rewards, answers=jnp.asarray(answers))
  weights = np.abs(np.asarray(advantages)[:, 0] / np.asarray(GRPO_Z(rewards))[:, 0])
  assert weights[1] > weights[0]
  assert weights[1] > weights[2]
  np.testing.assert_allclose(weights.mean(), 1.0, rtol=1e-5)


def test_dynamic_majority_matches_its_formula():
  rewards = np.array([[1, 1, 1, 0, 0, 0, 0, 0]], np.float32)
  answers = jnp.array([[9, 9, 9, 1, 1, 1, 2, -1]])
  # c = 3 of 8, strongest wrong answer 3 of 8: k = 4, p = 4/10; N C(N-1, k-1) p^3 (1-p)^4.
  weight = 8 * 35 * 0.4**3 * 0.6**4
  advantages = cat_majority(budget=8)(rewards, answers=answers)
  np.testing.assert_allclose(advantages, weight * np.asarray(GRPO_Z(rewards)), rtol=1e-5)
  clipped = cat_majority(budget=8, weight_clip=0.5)(rewards, answers=answers)
  np.testing.assert_allclose(clipped, 0.5 * np.asarray(GRPO_Z(rewards)), rtol=1e-5)


def test_silence_is_penalized_and_success_is_not():
  rewards = np.array([[0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 0, 0]], np.float32)
  rule = cat_pass_at_n(budget=1, probability="group", log_weighted=False, silence_penalty=0.5)
  advantages = np.asarray(rule(rewards))
  np.testing.assert_allclose(advantages[0], -0.5)
  np.testing.assert_array_equal(advantages[1], 0)
  np.testing.assert_allclose(advantages[2], GRPO_Z(rewards)[2], rtol=1e-6)


def test_silence_counts_only_rollouts_that_count():
  rewards = np.array([[0, 0, 0, 1]], np.float32)
  where = np.array([[True, True, True, False]])
  rule = cat_pass_at_n(budget=1, probability="group", log_weighted=False, silence_penalty=0.5)
  np.testing.assert_allclose(rule(rewards, where=where), [[-0.5, -0.5, -0.5, 0.0]])


def test_arguments_out_of_range_are_refused():
  for factory, arguments, message in (
    (cat_best_of_n, {"budget": 0}, "budget=0"),
    (cat_best_of_n, {"quantile": "median"}, "quantile='median'"),
    (cat_best_of_n, {"silence_penalty": 0.5}, "quantile='laplace'"),
    (cat_best_of_n, {"weight_clip": 0.0}, "weight_clip=0.0"),
    (cat_pass_at_n, {"probability": "token"}, "probability='token'"),
    (cat_pass_at_n, {"laplace": -1.0}, "laplace=-1.0"),
    (cat_majority, {"threshold": 9}, "threshold=9"),
    (cat_majority, {"weight_normalization": "prompt"}, "weight_normalization='prompt'"),
  ):
    with pytest.raises(ValueError, match=message):
      factory(**arguments)
