"""Estimators of the KL to the reference against exact sums over all completions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tea_jax.runs.objective import ObjectiveConfig
from tea_jax.training.kl import kl_estimate, kl_in_reward, kl_penalty
from tea_jax.training.ratios import completion_mask
from tests.training.enumerated import (
  LENGTHS,
  REWARDS,
  assert_close,
  completion_probabilities,
  expected_gradient,
  largest_difference,
  parameters,
  per_completion,
  token_logprobs,
)

pytestmark = pytest.mark.usefixtures("float64")


def _sequence_kl(params, reference):
  p, log_p, log_q = (
    completion_probabilities(params),
    token_logprobs(params),
    token_logprobs(reference),
  )
  return jnp.sum(p * (log_p - log_q).sum(-1))


def _token_kl(params, reference):
  """KL of each token's conditional, weighted by how often its prefix comes, the prefix fixed."""
  first = jax.nn.log_softmax(params["first"])
  second = jax.nn.log_softmax(params["second"])
  total = jnp.sum(jnp.exp(first) * (first - jax.nn.log_softmax(reference["first"])))
  for token in (1, 2):
    reach = jax.lax.stop_gradient(jnp.exp(first[token]))
    difference = second[token] - jax.nn.log_softmax(reference["second"])[token]
    total += reach * jnp.sum(jnp.exp(second[token]) * difference)
  return total


def _expected_kl_gradient(params, reference, **options):
  mask = completion_mask(jnp.asarray(LENGTHS), 2)
  return expected_gradient(
    lambda p: kl_penalty(token_logprobs(p), token_logprobs(reference), mask, **options).sum(-1),
    params,
  )


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_token_kl_has_the_exact_gradient_with_prefixes_fixed(estimator):
  params, reference = parameters(0), parameters(1)
  actual = _expected_kl_gradient(params, reference, estimator=estimator, gradient="token")
  assert_close(actual, jax.grad(_token_kl)(params, reference))


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_trajectory_kl_has_the_exact_gradient_of_the_sequence_kl(estimator):
  params, reference = parameters(0), parameters(1)
  actual = _expected_kl_gradient(params, reference, estimator=estimator, gradient="trajectory")
  expected = jax.grad(_sequence_kl)(params, reference)
  assert_close(actual, expected)
  assert largest_difference(expected, jax.grad(_token_kl)(params, reference)) > 0.01


def test_k1_differentiated_as_it_stands_has_no_expected_gradient():
  params, reference = parameters(0), parameters(1)
  actual = _expected_kl_gradient(params, reference, estimator="k1", gradient="estimator")
  assert_close(actual, jax.tree.map(np.zeros_like, params))


def test_k3_differentiated_as_it_stands_follows_another_divergence():
  params, reference = parameters(0), parameters(1)
  actual = _expected_kl_gradient(params, reference, estimator="k3", gradient="estimator")
  assert largest_difference(actual, jax.grad(_token_kl)(params, reference)) > 0.01


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_kl_value_is_unbiased(estimator):
  params, reference = parameters(0), parameters(1)
  mask = completion_mask(jnp.asarray(LENGTHS), 2)
  tokens = kl_estimate(token_logprobs(params), token_logprobs(reference), mask, estimator=estimator)
  actual = jnp.sum(completion_probabilities(params) * tokens.sum(-1))
  np.testing.assert_allclose(actual, _sequence_kl(params, reference), atol=1e-12)


@pytest.mark.parametrize("gradient", ["token", "trajectory"])
def test_kl_from_old_samples_is_corrected_by_the_ratio(gradient):
  params, reference, old = parameters(0), parameters(1), parameters(2)
  mask = completion_mask(jnp.asarray(LENGTHS), 2)

  def total(p):
    penalty = kl_penalty(
      token_logprobs(p),
      token_logprobs(reference),
      mask,
      gradient=gradient,
      old_logprobs=token_logprobs(old),
    )
    return jnp.sum(jax.lax.stop_gradient(completion_probabilities(old)) * penalty.sum(-1))

  if gradient == "trajectory":  # Exact whatever policy sampled.
    np.testing.assert_allclose(total(params), _sequence_kl(params, reference), atol=1e-12)
    assert_close(jax.grad(total)(params), jax.grad(_sequence_kl)(params, reference))
  else:  # At the old policy it is the on-policy gradient.
    expected = _expected_kl_gradient(old, reference, gradient="token")
    assert_close(jax.grad(total)(old), expected)


def test_kl_in_the_reward_is_the_gradient_of_reward_minus_sequence_kl():
  params, reference = parameters(0), parameters(1)
  rewards = kl_in_reward(
    jnp.asarray(REWARDS),
    token_logprobs(params),
    token_logprobs(reference),
    jnp.asarray(LENGTHS),
    kl_coefficient=0.4,
  )
  actual = expected_gradient(lambda p: per_completion(p, rewards=rewards), params)
  expected = jax.grad(
    lambda p: -jnp.sum(completion_probabilities(p) * REWARDS) + 0.4 * _sequence_kl(p, reference)
  )(params)
  assert_close(actual, expected)


def test_kl_in_the_loss_is_the_gradient_of_reward_minus_sequence_kl():
  params, reference = parameters(0), parameters(1)
  config = ObjectiveConfig(kl_coefficient=0.4, kl_gradient="trajectory")
  actual = expected_gradient(
    lambda p: per_completion(p, config=config, reference_logprobs=token_logprobs(reference)), params
  )
  expected = jax.grad(
    lambda p: -jnp.sum(completion_probabilities(p) * REWARDS) + 0.4 * _sequence_kl(p, reference)
  )(params)
  assert_close(actual, expected)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize("distance", [-60.0, -21.0, -3.0, 3.0, 21.0, 60.0])
def test_the_gradient_far_from_the_reference_is_the_log_ratio(estimator, distance):
  mask = jnp.ones((1, 1, 1), bool)

  def penalty(logprob):
    logprobs = jnp.full((1, 1, 1), logprob, jnp.float32)
    reference = jnp.full((1, 1, 1), -70.0 + distance, jnp.float32)
    return kl_penalty(logprobs, reference, mask, estimator=estimator).sum()

  # k1's also has the score itself, of zero expectation.
  expected = -distance + (1.0 if estimator == "k1" else 0.0)
  np.testing.assert_allclose(jax.grad(penalty)(-70.0), expected, rtol=1e-5)


def test_a_penalty_in_the_reward_is_exact_far_from_the_reference():
  rewards = kl_in_reward(
    jnp.ones((1, 1)),
    jnp.full((1, 1, 2), -1.0),
    jnp.full((1, 1, 2), -50.0),
    jnp.full((1, 1), 2),
    kl_coefficient=0.5,
  )
  np.testing.assert_allclose(rewards, 1.0 - 0.5 * 98.0)
