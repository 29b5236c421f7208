"""The loss against enumeration: a tabular policy whose expectations are exact sums.

The policy writes up to two tokens of a vocabulary of 3; token 0 ends a completion. So there are
1 + 2 * 3 = 7 completions of different lengths, and every expectation is a sum of 7 terms.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tea_jax.training.kl import kl_estimate, kl_in_reward, kl_penalty
from tea_jax.training.objective import ObjectiveConfig, policy_loss, token_weights
from tea_jax.training.ratios import completion_mask, importance_ratios

COMPLETIONS = [(0,)] + [(a, b) for a, b in itertools.product((1, 2), range(3))]
LENGTHS = np.array([[len(c) for c in COMPLETIONS]])
TOKENS = np.array([[c + (0,) * (2 - len(c)) for c in COMPLETIONS]])
REWARDS = np.array([[0.3, -1.0, 2.0, 0.7, 1.5, -0.2, 0.9]])


@pytest.fixture(autouse=True)
def _float64():
  with jax.enable_x64(True):
    yield


def _parameters(seed):
  rng = np.random.default_rng(seed)
  return {"first": rng.normal(size=3), "second": rng.normal(size=(3, 3))}


def _logprobs(params):
  """[1, 7, 2] log-probability of each token of every completion; 0 on padding."""
  first = jax.nn.log_softmax(params["first"])[TOKENS[..., 0]]
  second = jax.nn.log_softmax(params["second"])[TOKENS[..., 0], TOKENS[..., 1]]
  return jnp.stack([first, jnp.where(LENGTHS == 2, second, 0.0)], -1)


def _entropy(params):
  def entropy(logits):
    return -(jax.nn.softmax(logits) * jax.nn.log_softmax(logits)).sum(-1)

  first = jnp.broadcast_to(entropy(params["first"]), TOKENS.shape[:2])
  return jnp.stack([first, entropy(params["second"])[TOKENS[..., 0]]], -1)


def _probabilities(params):
  return jnp.exp(_logprobs(params).sum(-1))


def _expected_gradient(loss_of_one, params):
  """sum_y pi(y) grad loss(y), the loss of one completion written with batch-of-one weights."""
  probabilities = _probabilities(params)

  def total(params):
    return jnp.sum(jax.lax.stop_gradient(probabilities) * loss_of_one(params))

  return jax.grad(total)(params)


def _close(actual, expected, atol=1e-12):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), actual, expected)


def _different(actual, expected):
  return max(jax.tree.leaves(jax.tree.map(lambda a, b: np.abs(a - b).max(), actual, expected)))


def _per_completion(params, *, config=None, rewards=REWARDS, **extra):
  """Loss of each completion as if it were a batch of its own, [1, 7]."""
  config = config or ObjectiveConfig()

  def one(i, params):
    def at(x):
      return x[:, i : i + 1]

    logprobs = at(_logprobs(params))
    weights = token_weights(
      jnp.asarray(at(LENGTHS)), 2, aggregation=config.aggregation, max_completion_length=2
    )
    arrays = {k: at(v(params) if callable(v) else v) for k, v in extra.items()}
    return policy_loss(logprobs, jnp.asarray(at(rewards)), weights, config=config, **arrays)

  return jnp.stack([one(i, params) for i in range(7)])[None]


def test_completions_exhaust_the_policy():
  np.testing.assert_allclose(_probabilities(_parameters(0)).sum(), 1.0, atol=1e-12)


def test_token_sum_is_the_gradient_of_the_expected_reward():
  params = _parameters(0)
  actual = _expected_gradient(lambda p: _per_completion(p), params)
  expected = jax.grad(lambda p: -jnp.sum(_probabilities(p) * REWARDS))(params)
  _close(actual, expected)


def test_a_baseline_leaves_the_expected_gradient_alone():
  params = _parameters(1)
  actual = _expected_gradient(lambda p: _per_completion(p, rewards=REWARDS - 5.0), params)
  _close(actual, _expected_gradient(lambda p: _per_completion(p), params), atol=1e-11)


def test_constant_length_is_token_sum_over_the_constant():
  params = _parameters(0)
  config = ObjectiveConfig(aggregation="constant_length")
  actual = _expected_gradient(lambda p: _per_completion(p, config=config), params)
  expected = _expected_gradient(lambda p: _per_completion(p) / 2, params)
  _close(actual, expected)


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean"])
def test_length_averages_are_not_the_policy_gradient(aggregation):
  params = _parameters(0)
  config = ObjectiveConfig(aggregation=aggregation)
  actual = _expected_gradient(lambda p: _per_completion(p, config=config), params)
  expected = jax.grad(lambda p: -jnp.sum(_probabilities(p) * REWARDS))(params)
  assert _different(actual, expected) > 0.01
  assert _different(jax.tree.map(lambda x: 2 * x, actual), expected) > 0.01


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


def _sequence_kl(params, reference):
  p, log_p, log_q = _probabilities(params), _logprobs(params), _logprobs(reference)
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
  return _expected_gradient(
    lambda p: kl_penalty(_logprobs(p), _logprobs(reference), mask, **options).sum(-1), params
  )


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_token_kl_has_the_exact_gradient_with_prefixes_fixed(estimator):
  params, reference = _parameters(0), _parameters(1)
  actual = _expected_kl_gradient(params, reference, estimator=estimator, gradient="token")
  _close(actual, jax.grad(_token_kl)(params, reference))


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_trajectory_kl_has_the_exact_gradient_of_the_sequence_kl(estimator):
  params, reference = _parameters(0), _parameters(1)
  actual = _expected_kl_gradient(params, reference, estimator=estimator, gradient="trajectory")
  expected = jax.grad(_sequence_kl)(params, reference)
  _close(actual, expected)
  assert _different(expected, jax.grad(_token_kl)(params, reference)) > 0.01


def test_k1_differentiated_as_it_stands_has_no_expected_gradient():
  params, reference = _parameters(0), _parameters(1)
  actual = _expected_kl_gradient(params, reference, estimator="k1", gradient="estimator")
  _close(actual, jax.tree.map(np.zeros_like, params))


def test_k3_differentiated_as_it_stands_follows_another_divergence():
  params, reference = _parameters(0), _parameters(1)
  actual = _expected_kl_gradient(params, reference, estimator="k3", gradient="estimator")
  assert _different(actual, jax.grad(_token_kl)(params, reference)) > 0.01


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_kl_value_is_unbiased(estimator):
  params, reference = _parameters(0), _parameters(1)
  mask = completion_mask(jnp.asarray(LENGTHS), 2)
  tokens = kl_estimate(_logprobs(params), _logprobs(reference), mask, estimator=estimator)
  actual = jnp.sum(_probabilities(params) * tokens.sum(-1))
  np.testing.assert_allclose(actual, _sequence_kl(params, reference), atol=1e-12)


@pytest.mark.parametrize("gradient", ["token", "trajectory"])
def test_kl_from_old_samples_is_corrected_by_the_ratio(gradient):
  params, reference, old = _parameters(0), _parameters(1), _parameters(2)
  mask = completion_mask(jnp.asarray(LENGTHS), 2)

  def total(p):
    penalty = kl_penalty(
      _logprobs(p), _logprobs(reference), mask, gradient=gradient, old_logprobs=_logprobs(old)
    )
    return jnp.sum(jax.lax.stop_gradient(_probabilities(old)) * penalty.sum(-1))

  if gradient == "trajectory":  # Exact whatever policy sampled.
    np.testing.assert_allclose(total(params), _sequence_kl(params, reference), atol=1e-12)
    _close(jax.grad(total)(params), jax.grad(_sequence_kl)(params, reference))
  else:  # At the old policy it is the on-policy gradient.
    expected = _expected_kl_gradient(old, reference, gradient="token")
    _close(jax.grad(total)(old), expected)


def test_kl_in_the_reward_is_the_gradient_of_reward_minus_sequence_kl():
  params, reference = _parameters(0), _parameters(1)
  rewards = kl_in_reward(
    jnp.asarray(REWARDS),
    _logprobs(params),
    _logprobs(reference),
    jnp.asarray(LENGTHS),
    kl_coefficient=0.4,
  )
  actual = _expected_gradient(lambda p: _per_completion(p, rewards=rewards), params)
  expected = jax.grad(
    lambda p: -jnp.sum(_probabilities(p) * REWARDS) + 0.4 * _sequence_kl(p, reference)
  )(params)
  _close(actual, expected)


def test_kl_in_the_loss_is_the_gradient_of_reward_minus_sequence_kl():
  params, reference = _parameters(0), _parameters(1)
  config = ObjectiveConfig(kl_coefficient=0.4, kl_gradient="trajectory")
  actual = _expected_gradient(
    lambda p: _per_completion(p, config=config, reference_logprobs=_logprobs(reference)), params
  )
  expected = jax.grad(
    lambda p: -jnp.sum(_probabilities(p) * REWARDS) + 0.4 * _sequence_kl(p, reference)
  )(params)
  _close(actual, expected)


def test_entropy_bonus_adds_the_entropy_of_each_token():
  params = _parameters(0)
  config = ObjectiveConfig(entropy_coefficient=0.3)
  actual = _expected_gradient(lambda p: _per_completion(p, config=config, entropy=_entropy), params)
  probabilities = _probabilities(params)
  expected = jax.grad(
    lambda p: (
      -jnp.sum(_probabilities(p) * REWARDS)
      - 0.3 * jnp.sum(probabilities[..., None] * jnp.where(_mask(), _entropy(p), 0.0))
    )
  )(params)
  _close(actual, expected)


def _mask():
  return completion_mask(jnp.asarray(LENGTHS), 2)


def test_first_update_on_a_batch_has_ratio_one():
  params = _parameters(0)
  config = ObjectiveConfig(clip_epsilon_low=0.2, clip_epsilon_high=0.2)
  clipped = jax.grad(lambda p: _per_completion(p, config=config).sum())(params)
  _close(clipped, jax.grad(lambda p: _per_completion(p).sum())(params))


def test_old_logprobs_of_the_same_policy_change_nothing():
  params = _parameters(0)
  old = _logprobs(params)
  _close(
    jax.grad(lambda p: _per_completion(p, old_logprobs=old).sum())(params),
    jax.grad(lambda p: _per_completion(p).sum())(params),
  )


def test_sequence_ratio_makes_old_samples_unbiased():
  params, old = _parameters(0), _parameters(2)
  config = ObjectiveConfig(importance_ratio="sequence")
  actual = jax.grad(
    lambda p: jnp.sum(
      _probabilities(old) * _per_completion(p, config=config, old_logprobs=_logprobs(old))
    )
  )(params)
  _close(actual, jax.grad(lambda p: -jnp.sum(_probabilities(p) * REWARDS))(params))


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
  params, reference = _parameters(0), _parameters(1)
  config = ObjectiveConfig(kl_coefficient=0.4)
  extra = {"config": config, "reference_logprobs": _logprobs(reference)}
  plain = _per_completion(params, rewards=REWARDS, **extra)
  weighted = _per_completion(params, rewards=3 * REWARDS, **extra)
  surrogate = _per_completion(params, rewards=REWARDS)
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
