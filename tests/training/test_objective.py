"""The loss against exact sums over all completions of a small policy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tea_jax.runs.objective import ObjectiveConfig
from tea_jax.training.objective import policy_loss, token_weights
from tea_jax.training.ratios import importance_ratios
from tests.training.enumerated import (
  REWARDS,
  assert_close,
  completion_probabilities,
  expected_gradient,
  largest_difference,
  parameters,
  per_completion,
  token_entropy,
  token_logprobs,
  token_mask,
)

pytestmark = pytest.mark.usefixtures("float64")


def test_completions_exhaust_the_policy():
  np.testing.assert_allclose(completion_probabilities(parameters(0)).sum(), 1.0, atol=1e-12)


def test_token_sum_is_the_gradient_of_the_expected_reward():
  params = parameters(0)
  actual = expected_gradient(lambda p: per_completion(p), params)
  expected = jax.grad(lambda p: -jnp.sum(completion_probabilities(p) * REWARDS))(params)
  assert_close(actual, expected)


def test_a_baseline_leaves_the_expected_gradient_alone():
  params = parameters(1)
  actual = expected_gradient(lambda p: per_completion(p, rewards=REWARDS - 5.0), params)
  assert_close(actual, expected_gradient(lambda p: per_completion(p), params), atol=1e-11)


def test_constant_length_is_token_sum_over_the_constant():
  params = parameters(0)
  config = ObjectiveConfig(aggregation="constant_length")
  actual = expected_gradient(lambda p: per_completion(p, config=config), params)
  expected = expected_gradient(lambda p: per_completion(p) / 2, params)
  assert_close(actual, expected)


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean"])
def test_length_averages_are_not_the_policy_gradient(aggregation):
  params = parameters(0)
  config = ObjectiveConfig(aggregation=aggregation)
  actual = expected_gradient(lambda p: per_completion(p, config=config), params)
  expected = jax.grad(lambda p: -jnp.sum(completion_probabilities(p) * REWARDS))(params)
  assert largest_difference(actual, expected) > 0.01
  assert largest_difference(jax.tree.map(lambda x: 2 * x, actual), expected) > 0.01


@pytest.mark.parametrize(
  "aggregation, expected",
  [
    ("token_sum", [[0.5, 0.0, 0.0], [0.5, 0.5, 0.5]]),
    ("constant_length", [[0.1, 0.0, 0.0], [0.1, 0.1, 0.1]]),
    ("token_mean", [[0.25, 0.0, 0.0], [0.25, 0.25, 0.25]]),
    ("sequence_mean", [[0.5, 0.0, 0.0], [1 / 6, 1 / 6, 1 / 6]]),
  ],
)
def test_token_weights_by_hand(aggregation, expected):
  lengths = jnp.array([[1, 3]])
  weights = token_weights(lengths, 3, aggregation=aggregation, max_completion_length=5)
  np.testing.assert_allclose(weights[0], expected, rtol=1e-6)


@pytest.mark.parametrize(
  "aggregation, expected",
  [
    ("token_sum", [[0.0, 0.0], [1.0, 1.0]]),
    ("token_mean", [[0.0, 0.0], [0.5, 0.5]]),
    ("sequence_mean", [[0.0, 0.0], [0.5, 0.5]]),
  ],
)
def test_masked_rollouts_leave_numerator_and_divisor(aggregation, expected):
  weights = token_weights(
    jnp.array([[2, 2]]), 2, aggregation=aggregation, where=jnp.array([[False, True]])
  )
  np.testing.assert_allclose(weights[0], expected, rtol=1e-6)


def test_a_batch_without_counted_rollouts_has_zero_loss():
  weights = token_weights(jnp.array([[2, 2]]), 2, where=jnp.zeros((1, 2), bool))
  loss = policy_loss(jnp.ones((1, 2, 2)), jnp.ones((1, 2)), weights, config=ObjectiveConfig())
  assert loss == 0.0


def test_entropy_bonus_adds_the_entropy_of_each_token():
  params = parameters(0)
  config = ObjectiveConfig(entropy_coefficient=0.3)
  actual = expected_gradient(
    lambda p: per_completion(p, config=config, entropy=token_entropy), params
  )
  probabilities = completion_probabilities(params)
  expected = jax.grad(
    lambda p: (
      -jnp.sum(completion_probabilities(p) * REWARDS)
      - 0.3 * jnp.sum(probabilities[..., None] * jnp.where(token_mask(), token_entropy(p), 0.0))
    )
  )(params)
  assert_close(actual, expected)


def test_first_update_on_a_batch_has_ratio_one():
  params = parameters(0)
  config = ObjectiveConfig(clip_epsilon_low=0.2, clip_epsilon_high=0.2)
  clipped = jax.grad(lambda p: per_completion(p, config=config).sum())(params)
  assert_close(clipped, jax.grad(lambda p: per_completion(p).sum())(params))


def test_old_logprobs_of_the_same_policy_change_nothing():
  params = parameters(0)
  old = token_logprobs(params)
  assert_close(
    jax.grad(lambda p: per_completion(p, old_logprobs=old).sum())(params),
    jax.grad(lambda p: per_completion(p).sum())(params),
  )


def test_sequence_ratio_makes_old_samples_unbiased():
  params, old = parameters(0), parameters(2)
  config = ObjectiveConfig(importance_ratio="sequence")
  actual = jax.grad(
    lambda p: jnp.sum(
      completion_probabilities(old)
      * per_completion(p, config=config, old_logprobs=token_logprobs(old))
    )
  )(params)
  assert_close(actual, jax.grad(lambda p: -jnp.sum(completion_probabilities(p) * REWARDS))(params))


@pytest.mark.parametrize(
  "ratio, advantage, value, slope",
  [
    (1.5, 1.0, 1.3, 0.0),  # above the upper clip, pushing up: stops
    (1.5, -1.0, -1.5, -1.0),  # above it, pushing down: goes on
    (0.5, -1.0, -0.8, 0.0),  # below the lower clip, pushing down: stops
    (0.5, 1.0, 0.5, 1.0),  # below it, pushing up: goes on
    (1.1, 1.0, 1.1, 1.0),
  ],
)
def test_clipping_by_hand(ratio, advantage, value, slope):
  config = ObjectiveConfig(clip_epsilon_low=0.2, clip_epsilon_high=0.3)
  weights = token_weights(jnp.array([[1]]), 1)

  def loss(new):
    return policy_loss(
      jnp.log(new).reshape(1, 1, 1),
      jnp.full((1, 1), advantage),
      weights,
      config=config,
      old_logprobs=jnp.zeros((1, 1, 1)),
    )

  np.testing.assert_allclose(loss(ratio), -value, atol=1e-6)
  np.testing.assert_allclose(jax.grad(loss)(ratio), -slope, atol=1e-6)


def test_sampler_correction_multiplies_by_the_capped_ratio():
  config = ObjectiveConfig(importance_cap=1.5)
  logprobs = jnp.log(jnp.array([[[0.5, 0.6]]]))
  sampler = jnp.log(jnp.array([[[0.4, 0.1]]]))
  weights = token_weights(jnp.array([[2]]), 2)
  loss = policy_loss(logprobs, jnp.array([[2.0]]), weights, config=config, sampler_logprobs=sampler)
  np.testing.assert_allclose(loss, -2.0 * (0.5 / 0.4 + 1.5), rtol=1e-6)


def test_rollout_weights_scale_the_surrogate_but_not_the_kl():
  params, reference = parameters(0), parameters(1)
  config = ObjectiveConfig(kl_coefficient=0.4)
  extra = {"config": config, "reference_logprobs": token_logprobs(reference)}
  plain = per_completion(params, rewards=REWARDS, **extra)
  weighted = per_completion(params, rewards=3 * REWARDS, **extra)
  surrogate = per_completion(params, rewards=REWARDS)
  np.testing.assert_allclose(weighted - plain, 2 * surrogate, atol=1e-6)


def test_padding_reaches_neither_loss_nor_gradient():
  weights = token_weights(jnp.array([[1]]), 2)

  def loss(logprobs):
    return policy_loss(logprobs, jnp.ones((1, 1)), weights, config=ObjectiveConfig())

  gradient = jax.grad(loss)(jnp.array([[[-1.0, -7.0]]]))
  np.testing.assert_allclose(gradient, [[[-1.0, 0.0]]], atol=1e-7)


def test_extreme_ratios_stay_finite():
  config = ObjectiveConfig(clip_epsilon_low=0.2, clip_epsilon_high=0.2)
  weights = token_weights(jnp.array([[1]]), 1)
  for gap in (-1e4, 1e4):
    for advantage in (-1.0, 1.0):
      value, slope = jax.value_and_grad(
        lambda x: policy_loss(
          x,
          jnp.full((1, 1), advantage),  # noqa: B023
          weights,
          config=config,
          old_logprobs=x - gap,  # noqa: B023
        )
      )(jnp.full((1, 1, 1), -2.0))
      assert np.isfinite(value)
      assert np.isfinite(slope).all()


def test_sequence_ratio_is_the_product_of_token_ratios():
  logprobs, old = jnp.array([[[-1.0, -2.0, -9.0]]]), jnp.array([[[-1.5, -1.0, 0.0]]])
  mask = jnp.array([[[True, True, False]]])
  ratios = importance_ratios(logprobs, old, mask, level="sequence")
  np.testing.assert_allclose(ratios[0, 0, :2], np.exp(-0.5), rtol=1e-6)


@pytest.mark.parametrize(
  "options, words",
  [
    ({"kl_coefficient": -1.0}, "kl_coefficient=-1.0"),
    ({"kl_placement": "reward", "kl_coefficient": 0.1}, "only k1"),
    (
      {"kl_coefficient": 0.1, "kl_estimator": "k1", "kl_gradient": "estimator"},
      "zero expected gradient",
    ),
    ({"kl_coefficient": 0.1, "kl_estimator": "k2", "kl_gradient": "trajectory"}, "k1 or"),
    ({"clip_epsilon_low": 1.2}, "below 1"),
    ({"clip_epsilon_high": 0.0}, "positive"),
    ({"importance_cap": 0.0}, "positive"),
    ({"truncation_penalty": 1.0}, "penalise"),
  ],
)
def test_impossible_objectives_are_refused(options, words):
  with pytest.raises(ValueError, match=words):
    ObjectiveConfig(**options)
