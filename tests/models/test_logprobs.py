import functools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from tea_jax.models.fused_head import HeadOptions, fused_logprobs
from tea_jax.models.logprobs import group_logprobs, token_logprobs
from tea_jax.rollout.types import Rollouts
from tests.models.tiny import CONFIGS, COSTLY, LLAMA, tiny_policy

PROMPT_LENGTHS = np.asarray([5, 7])
COMPLETION_LENGTHS = np.asarray([[6, 1, 4], [2, 6, 3]])


def make_rollouts():
  rng = np.random.default_rng(0)
  return Rollouts(
    prompt_tokens=rng.integers(0, 97, (2, 7)),
    prompt_lengths=PROMPT_LENGTHS,
    completion_tokens=rng.integers(0, 97, (2, 3, 6)),
    completion_lengths=COMPLETION_LENGTHS,
    finished=np.ones((2, 3), bool),
    logprobs=np.zeros((2, 3, 6)),
    sampling_logprobs=np.zeros((2, 3, 6)),
  )


def as_rows(rollouts, per_token):
  """Rows prompt | completion | padding, and `per_token` moved to the places of the tokens."""
  rows, moved = np.zeros((6, 13), np.int32), np.zeros((6, 13), np.float32)
  for row, (prompt, rollout) in enumerate(np.ndindex(2, 3)):
    start, length = PROMPT_LENGTHS[prompt], COMPLETION_LENGTHS[prompt, rollout]
    rows[row, :start] = rollouts.prompt_tokens[prompt, :start]
    rows[row, start : start + length] = rollouts.completion_tokens[prompt, rollout, :length]
    moved[row, start : start + length] = per_token[prompt, rollout, :length]
  return rows, moved


def score_groups(policy, rollouts):
  return jax.jit(functools.partial(group_logprobs, policy))(policy.params, rollouts).logprobs


def naive_logprobs(policy, params, rows, temperature):
  logits = policy.logits(params, policy.hidden_states(params, rows)) / temperature
  table = jax.nn.log_softmax(logits)[:, :-1]
  chosen = jnp.take_along_axis(table, rows[:, 1:, None], axis=-1)[..., 0]
  entropy = -jnp.sum(jnp.exp(table) * table, axis=-1)
  return tuple(jnp.pad(value, ((0, 0), (1, 0))) for value in (chosen, entropy))


@pytest.mark.parametrize("tokens, chunk", [(10, 4), (9, 4), (8, 4), (7, 7), (5, 16)])
@pytest.mark.parametrize("vocabulary_first", [True, False])
def test_every_token_counts_once_in_the_heads_gradient(tokens, chunk, vocabulary_first):
  rng = np.random.default_rng(0)
  hidden = jnp.asarray(rng.normal(size=(tokens, 5)), jnp.float32)
  weight = jnp.asarray(rng.normal(size=(11, 5) if vocabulary_first else (5, 11)), jnp.float32)
  targets, outer = rng.integers(0, 11, tokens), rng.normal(size=(2, tokens)).astype(np.float32)
  options = HeadOptions(vocabulary_first, 0.7, True, min(chunk, tokens))

  def fused(hidden, weight):
    logprobs, entropy = fused_logprobs(hidden, weight, targets, np.ones(tokens, bool), options)
    return jnp.sum(outer[0] * logprobs + outer[1] * entropy)

  def naive(hidden, weight):
    table = jax.nn.log_softmax(hidden @ (weight.T if vocabulary_first else weight) / 0.7)
    entropy = -jnp.sum(jnp.exp(table) * table, axis=-1)
    return jnp.sum(outer[0] * table[jnp.arange(tokens), targets] + outer[1] * entropy)

  actual = jax.grad(fused, (0, 1))(hidden, weight)
  for one, other in zip(actual, jax.grad(naive, (0, 1))(hidden, weight), strict=True):
    np.testing.assert_allclose(one, other, atol=2e-5)


@pytest.mark.parametrize("name", COSTLY)
def test_fused_logprobs_and_gradients_equal_naive_ones(name):
  policy = tiny_policy(CONFIGS[name], remat="full")
  rollouts = make_rollouts()
  rng = np.random.default_rng(1)
  weights = [rng.normal(size=(2, 3, 6)).astype(np.float32) for _ in range(2)]
  (rows, moved), (_, moved_entropy) = (as_rows(rollouts, weight) for weight in weights)
  prompt_lengths = np.repeat(PROMPT_LENGTHS, 3)
  lengths = prompt_lengths + COMPLETION_LENGTHS.reshape(-1)
  options = {"temperature": 0.7, "with_entropy": True}

  def grouped(params):
    scored = group_logprobs(policy, params, rollouts, chunk=4, **options)
    return jnp.sum(scored.logprobs * weights[0] + scored.entropy * weights[1])

  def by_rows(params):
    scored = token_logprobs(policy, params, rows, prompt_lengths, lengths, chunk=5, **options)
    return jnp.sum(scored.logprobs * moved + scored.entropy * moved_entropy)

  def naive(params):
    logprobs, entropy = naive_logprobs(policy, params, rows, 0.7)
    return jnp.sum(logprobs * moved + entropy * moved_entropy)

  value, gradient = jax.jit(jax.value_and_grad(naive))(policy.params)
  for function in (grouped, by_rows):
    other_value, other_gradient = jax.jit(jax.value_and_grad(function))(policy.params)
    assert float(other_value) == pytest.approx(float(value), abs=1e-4)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=3e-4, rtol=1e-4), other_gradient, gradient
    )


def test_group_logprobs_equal_token_logprobs_and_zero_on_padding():
  policy, rollouts = tiny_policy(), make_rollouts()
  grouped = np.asarray(score_groups(policy, rollouts))
  rows, moved = as_rows(rollouts, grouped)
  prompt_lengths = np.repeat(PROMPT_LENGTHS, 3)
  lengths = prompt_lengths + COMPLETION_LENGTHS.reshape(-1)
  scored = jax.jit(functools.partial(token_logprobs, policy))(
    policy.params, rows, prompt_lengths, lengths
  )
  np.testing.assert_allclose(scored.logprobs, moved, atol=2e-5)
  assert scored.entropy is None
  padding = np.arange(6) >= COMPLETION_LENGTHS[..., None]
  assert (grouped[padding] == 0).all()
  assert (grouped[~padding] < 0).all()


def test_padding_tokens_change_nothing():
  policy, rollouts = tiny_policy(), make_rollouts()
  padding = np.arange(6) >= COMPLETION_LENGTHS[..., None]
  other = rollouts._replace(completion_tokens=np.where(padding, 11, rollouts.completion_tokens))
  first, second = (score_groups(policy, r) for r in (rollouts, other))
  np.testing.assert_array_equal(first, second)


def test_extreme_logits_stay_finite():
  policy = tiny_policy(sharpness=300.0)
  rollouts = make_rollouts()

  def loss(params):
    scored = group_logprobs(policy, params, rollouts, temperature=0.01, with_entropy=True)
    return jnp.sum(scored.logprobs) + jnp.sum(scored.entropy)

  value, gradient = jax.jit(jax.value_and_grad(loss))(policy.params)
  assert np.isfinite(value)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def buffers(jaxpr):
  """Sizes of all arrays that a jaxpr makes, nested ones included."""
  for equation in jaxpr.eqns:
    for variable in equation.outvars:
      yield getattr(variable.aval, "shape", ())
    for inner in jax.extend.core.jaxprs_in_params(equation.params):
      yield from buffers(inner)


def test_no_buffer_holds_the_logits_of_the_batch():
  config = LLAMA.__class__(**{**LLAMA.__dict__, "vocab_size": 4099})
  policy = tiny_policy(config)
  tokens = np.zeros((8, 33), np.int32)
  prompt_lengths, lengths = np.full(8, 1), np.full(8, 33)

  def loss(params, chunk):
    scored = token_logprobs(policy, params, tokens, prompt_lengths, lengths, chunk=chunk)
    return jnp.sum(scored.logprobs)

  def temporaries(chunk):
    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    return gradient.lower(policy.params, chunk).compile().memory_analysis().temp_size_in_bytes

  jaxpr = jax.make_jaxpr(jax.grad(loss), static_argnums=1)(policy.params, 16).jaxpr
  with_vocabulary = [s for s in buffers(jaxpr) if 4099 in s and np.prod(s) > 4099 * 32]
  assert not with_vocabulary
  # The whole batch is 256 tokens: 4.2 MB a buffer, several of which the naive version needs.
  assert temporaries(256) - temporaries(16) > 0.9 * 240 * 4099 * 4
  assert temporaries(16) < 8 * 32 * 4099 * 4


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_temperature_must_be_positive(temperature):
  policy = tiny_policy()
  with pytest.raises(ValueError, match="must be positive"):
    group_logprobs(policy, policy.params, make_rollouts(), temperature=temperature)
