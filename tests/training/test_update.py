"""The compiled update on a bigram policy, whose log-probabilities are a table look-up."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tea_jax.rollout.types import Rollouts
from tea_jax.runs.objective import ObjectiveConfig
from tea_jax.runs.optimizer import OptimizerConfig
from tea_jax.training.optimizer import init_optimizer
from tea_jax.training.update import Batch, make_evaluate_logprobs, make_update

VOCABULARY, P, M, T = 7, 4, 6, 5


def _bigram(trainable, frozen, rollouts):
  """log p(token | previous token): one matrix of logits, plus a frozen offset."""
  table = jax.nn.log_softmax(trainable["table"] + frozen["offset"])
  last = jnp.take_along_axis(rollouts.prompt_tokens, (rollouts.prompt_lengths - 1)[:, None], axis=1)
  tokens = rollouts.completion_tokens
  start = jnp.broadcast_to(last[:, None], tokens.shape[:2] + (1,))
  previous = jnp.concatenate([start, tokens[..., :-1]], -1)
  entropy = -(jnp.exp(table) * table).sum(-1)[previous]
  valid = jnp.arange(tokens.shape[-1]) < rollouts.completion_lengths[..., None]
  return jnp.where(valid, table[previous, tokens], 0.0), jnp.where(valid, entropy, 0.0)


def _trainable(seed=0):
  return {"table": jax.random.normal(jax.random.key(seed), (VOCABULARY, VOCABULARY))}


FROZEN = {"offset": jnp.linspace(0, 1, VOCABULARY)}


def _batch(seed=0, *, where=None):
  rng = np.random.default_rng(seed)
  lengths = jnp.asarray(rng.integers(1, T + 1, (P, M)), jnp.int32)
  rollouts = Rollouts(
    prompt_tokens=jnp.asarray(rng.integers(0, VOCABULARY, (P, 3)), jnp.int32),
    prompt_lengths=jnp.asarray(rng.integers(1, 4, P), jnp.int32),
    completion_tokens=jnp.asarray(rng.integers(0, VOCABULARY, (P, M, T)), jnp.int32),
    completion_lengths=lengths,
    finished=lengths < T,
    logprobs=jnp.zeros((P, M, T)),
    sampling_logprobs=jnp.zeros((P, M, T)),
  )
  sampled, _ = _bigram(_trainable(), FROZEN, rollouts)
  rollouts = rollouts._replace(logprobs=sampled)
  advantages = jnp.asarray(rng.normal(size=(P, M)), jnp.float32)
  return Batch(rollouts, advantages, jnp.ones((P, M), bool) if where is None else where)


def _run(batch, *, objective=None, optimizer=None, trainable=None, rate=0.1, beta=0.0, updates=1):
  objective = objective or ObjectiveConfig()
  optimizer = optimizer or OptimizerConfig()
  update = make_update(_bigram, objective, optimizer, max_completion_length=T)
  trainable = _trainable() if trainable is None else trainable
  state = init_optimizer(optimizer, trainable)
  for _ in range(updates):
    result = update(trainable, state, FROZEN, batch, rate, beta)
    trainable, state = result.trainable, result.optimizer_state
    if batch.old_logprobs is None:
      batch = batch._replace(old_logprobs=result.logprobs)
  return result


SGD = OptimizerConfig(name="sgd", beta1=0.0, max_gradient_norm=0.0)


def test_plain_update_is_reinforce_by_hand():
  batch = _batch()
  result = _run(batch, optimizer=SGD)

  def objective(trainable):
    logprobs, _ = _bigram(trainable, FROZEN, batch.rollouts)
    return jnp.mean(batch.advantages * logprobs.sum(-1))

  ascent = jax.grad(objective)(_trainable())["table"]
  np.testing.assert_allclose(
    result.trainable["table"], _trainable()["table"] + 0.1 * ascent, atol=1e-6
  )
  np.testing.assert_allclose(result.metrics["grad_norm"], optax.tree.norm(ascent), rtol=1e-5)


@pytest.mark.parametrize("micro, buckets", [(2, 1), (12, 1), (0, 3), (4, 3), (12, 4)])
@pytest.mark.parametrize("aggregation", ["token_sum", "token_mean", "sequence_mean"])
def test_micro_batches_add_up_to_the_full_batch(micro, buckets, aggregation):
  where = jnp.arange(P * M).reshape(P, M) % 5 != 0
  batch = _batch(where=where)._replace(
    reference_logprobs=_bigram(_trainable(3), FROZEN, _batch().rollouts)[0]
  )
  objective = ObjectiveConfig(aggregation=aggregation, kl_coefficient=0.1, entropy_coefficient=0.05)

  def run(size, buckets):
    sizes = {"micro_batch_rollouts": size, "length_buckets": buckets}
    optimizer = OptimizerConfig(name="sgd", beta1=0.0, **sizes)
    return _run(batch, objective=objective, optimizer=optimizer, beta=0.1)

  whole, parts = run(0, 1), run(micro, buckets)
  np.testing.assert_allclose(
    parts.trainable["table"], whole.trainable["table"], rtol=1e-5, atol=1e-6
  )
  np.testing.assert_array_equal(parts.logprobs, whole.logprobs)
  for name, value in whole.metrics.items():
    np.testing.assert_allclose(parts.metrics[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


def test_widths_are_compiled_once_for_batches_of_any_lengths():
  widths = []

  def logprobs(trainable, frozen, rollouts):
    widths.append(rollouts.completion_tokens.shape[-1])
    return _bigram(trainable, frozen, rollouts)

  optimizer = OptimizerConfig(name="sgd", micro_batch_rollouts=4, length_buckets=3)
  update = make_update(logprobs, ObjectiveConfig(), optimizer, max_completion_length=T)
  evaluate = make_evaluate_logprobs(logprobs, micro_batch_rollouts=4, length_buckets=3)
  for seed in range(3):
    batch = _batch(seed)
    found = evaluate(_trainable(), FROZEN, batch.rollouts)
    np.testing.assert_array_equal(found, _bigram(_trainable(), FROZEN, batch.rollouts)[0])
    update(_trainable(), init_optimizer(optimizer, _trainable()), FROZEN, batch, 0.1, 0.0)
  assert update._cache_size() == evaluate._cache_size() == 1
  assert widths == [2, 4, 5] * 2


def test_rollouts_that_do_not_count_change_nothing():
  where = jnp.ones((P, M), bool).at[0, 1].set(False)
  batch = _batch(where=where)
  other = batch._replace(advantages=batch.advantages.at[0, 1].set(1e6))
  one, two = _run(batch), _run(other)
  np.testing.assert_array_equal(one.trainable["table"], two.trainable["table"])


def test_gradient_is_clipped_to_its_global_norm():
  batch = _batch()
  free = _run(batch, optimizer=SGD)
  bound = float(free.metrics["grad_norm"]) / 4
  clipped = _run(batch, optimizer=OptimizerConfig(name="sgd", beta1=0.0, max_gradient_norm=bound))
  start = _trainable()["table"]
  np.testing.assert_allclose(
    clipped.trainable["table"] - start, (free.trainable["table"] - start) / 4, atol=1e-6
  )
  np.testing.assert_allclose(clipped.metrics["grad_norm"], free.metrics["grad_norm"], rtol=1e-6)


@pytest.mark.parametrize("poison", [jnp.nan, jnp.inf])
@pytest.mark.parametrize("name", ["adamw", "sgd", "lion"])
def test_a_step_that_is_not_finite_is_skipped_and_reported(poison, name):
  batch = _batch()
  optimizer = OptimizerConfig(name=name)
  before = init_optimizer(optimizer, _trainable())
  bad = batch._replace(advantages=batch.advantages.at[1, 2].set(poison))
  result = _run(bad, optimizer=optimizer)
  assert result.metrics["skipped"] == 1.0
  chex.assert_trees_all_equal(result.trainable, _trainable())
  chex.assert_trees_all_equal(result.optimizer_state, before)
  assert _run(batch, optimizer=optimizer).metrics["skipped"] == 0.0


def test_adamw_is_optax_adamw_with_clipping():
  batch = _batch()
  optimizer = OptimizerConfig(weight_decay=0.1, max_gradient_norm=0.01)
  result = _run(batch, optimizer=optimizer)

  def loss(trainable):
    logprobs, _ = _bigram(trainable, FROZEN, batch.rollouts)
    return -jnp.mean(batch.advantages * logprobs.sum(-1))

  # "table" is no kernel, so it does not decay.
  reference = optax.chain(optax.clip_by_global_norm(0.01), optax.adam(0.1, b1=0.9, b2=0.95))
  updates, _ = reference.update(jax.grad(loss)(_trainable()), reference.init(_trainable()))
  expected = optax.apply_updates(_trainable(), updates)
  np.testing.assert_allclose(result.trainable["table"], expected["table"], rtol=1e-5)


def test_weight_decay_shrinks_kernels_only():
  def logprobs(trainable, frozen, rollouts):
    return _bigram({"table": trainable["kernel"] + trainable["scale"]}, frozen, rollouts)

  optimizer = OptimizerConfig(name="sgd", beta1=0.0, weight_decay=0.5)
  update = make_update(logprobs, ObjectiveConfig(), optimizer, max_completion_length=T)
  trainable = {"kernel": _trainable()["table"], "scale": jnp.ones(VOCABULARY)}
  batch = _batch()._replace(advantages=jnp.zeros((P, M)))
  kernel = np.asarray(trainable["kernel"])
  result = update(trainable, init_optimizer(optimizer, trainable), FROZEN, batch, 0.1, 0.0)
  np.testing.assert_allclose(result.trainable["kernel"], kernel * 0.95, rtol=1e-6)
  np.testing.assert_array_equal(result.trainable["scale"], jnp.ones(VOCABULARY))


def test_second_update_on_a_batch_uses_the_ratio_to_the_first_policy():
  batch = _batch()
  first = _run(batch, optimizer=SGD)
  second = _run(batch, optimizer=SGD, updates=2)

  def objective(trainable):
    new, _ = _bigram(trainable, FROZEN, batch.rollouts)
    old, _ = _bigram(_trainable(), FROZEN, batch.rollouts)
    return jnp.mean(batch.advantages * jnp.exp(new - old).sum(-1))

  # exp(0) = 1 on padding is constant.
  ascent = jax.grad(objective)(jax.tree.map(jnp.array, first.trainable))["table"]
  np.testing.assert_allclose(
    second.trainable["table"], first.trainable["table"] + 0.1 * ascent, atol=1e-6
  )


def test_clipping_stops_updates_that_went_too_far():
  batch = _batch()
  clip = ObjectiveConfig(clip_epsilon_low=0.05, clip_epsilon_high=0.05)
  free = _run(batch, optimizer=SGD, rate=5.0, updates=6)
  clipped = _run(batch, objective=clip, optimizer=SGD, rate=5.0, updates=6)
  start = _trainable()["table"]
  assert (
    np.abs(clipped.trainable["table"] - start).max() < np.abs(free.trainable["table"] - start).max()
  )
  assert clipped.metrics["clip_ratio/high"] > 0
  assert clipped.metrics["clip_ratio/low"] > 0


def test_sampler_mismatch_is_measured():
  batch = _batch()
  same = _run(batch).metrics
  np.testing.assert_allclose(same["sampler/logp_difference/max"], 0.0, atol=1e-6)
  np.testing.assert_allclose(same["sampler/importance_ratio/mean"], 1.0, atol=1e-6)
  shifted = batch._replace(
    rollouts=batch.rollouts._replace(logprobs=batch.rollouts.logprobs - jnp.log(2.0))
  )
  metrics = _run(shifted, objective=ObjectiveConfig(importance_cap=1.5)).metrics
  np.testing.assert_allclose(metrics["sampler/logp_difference/mean"], np.log(2), rtol=1e-5)
  np.testing.assert_allclose(metrics["sampler/logp_difference/p95"], np.log(2), rtol=1e-5)
  np.testing.assert_allclose(metrics["sampler/importance_ratio/max"], 2.0, rtol=1e-5)
  np.testing.assert_allclose(metrics["sampler/importance_ratio/clipped_frac"], 1.0)


def test_kl_and_entropy_metrics_by_hand():
  batch = _batch()
  reference = _bigram(_trainable(3), FROZEN, batch.rollouts)[0]
  metrics = _run(batch._replace(reference_logprobs=reference)).metrics
  logprobs, entropy = _bigram(_trainable(), FROZEN, batch.rollouts)
  d = reference - logprobs
  total = float((jnp.exp(d) - 1 - d).sum())
  tokens = int(batch.rollouts.completion_lengths.sum())
  np.testing.assert_allclose(metrics["kl"], total / (P * M), rtol=1e-5)
  np.testing.assert_allclose(metrics["kl_per_token"], total / tokens, rtol=1e-5)
  np.testing.assert_allclose(metrics["entropy"], entropy.sum() / tokens, rtol=1e-5)


def test_kl_coefficient_and_rate_are_inputs_of_one_compiled_update():
  batch = _batch()._replace(reference_logprobs=_bigram(_trainable(3), FROZEN, _batch().rollouts)[0])
  optimizer = OptimizerConfig()
  update = make_update(
    _bigram, ObjectiveConfig(kl_coefficient=1.0), optimizer, max_completion_length=T
  )
  results = []
  for rate, beta in ((0.1, 0.0), (0.2, 0.5), (0.3, 1.0)):
    trainable = _trainable()
    results.append(
      update(trainable, init_optimizer(optimizer, trainable), FROZEN, batch, rate, beta)
    )
  assert update._cache_size() == 1
  assert not np.allclose(results[0].metrics["policy_loss"], results[1].metrics["policy_loss"])


def test_parameters_and_state_are_donated():
  optimizer = OptimizerConfig()
  update = make_update(_bigram, ObjectiveConfig(), optimizer, max_completion_length=T)
  trainable = _trainable()
  state = init_optimizer(optimizer, trainable)
  update(trainable, state, FROZEN, _batch(), 0.1, 0.0)
  assert trainable["table"].is_deleted()
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize("micro", [0, 2, 12])
def test_reference_logprobs_do_not_depend_on_micro_batches(micro):
  rollouts = _batch().rollouts
  evaluate = make_evaluate_logprobs(_bigram, micro_batch_rollouts=micro)
  np.testing.assert_array_equal(
    evaluate(_trainable(), FROZEN, rollouts), _bigram(_trainable(), FROZEN, rollouts)[0]
  )
