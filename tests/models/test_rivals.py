import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tea_jax.models.logprobs import token_logprobs
from tea_jax.models.rivals import gold_tokens
from tests.training import tiny

TOKENS = jnp.array([[3, 4, 5, 6, 0, 0], [7, 8, 9, 10, 11, 12]])
PROMPTS, LENGTHS = jnp.array([2, 1]), jnp.array([5, 6])
KEYS = jax.random.split(jax.random.key(5), 2)


@pytest.fixture(scope="module")
def policy():
  return tiny.policy()


def full_logits(policy, params):
  """`[B, T, V]` logits that predict each token, by the model alone."""
  hidden = policy.hidden_states(params, TOKENS, LENGTHS)
  return jnp.pad(policy.logits(params, hidden)[:, :-1], ((0, 0), (1, 0), (0, 0)))


def valid():
  places = np.arange(TOKENS.shape[1])
  return (places >= PROMPTS[:, None]) & (places < LENGTHS[:, None])


def test_logprobs_are_those_of_the_trainer(policy):
  found = gold_tokens(policy, policy.params, TOKENS, PROMPTS, LENGTHS)
  expected = token_logprobs(policy, policy.params, TOKENS, PROMPTS, LENGTHS).logprobs
  np.testing.assert_allclose(found.logprobs, expected, atol=1e-5)
  np.testing.assert_array_equal(found.pairwise, 0)


def test_the_margin_is_to_the_largest_other_logit(policy):
  logits = np.array(full_logits(policy, policy.params))
  gold = np.take_along_axis(logits, np.asarray(TOKENS)[..., None], -1)[..., 0]
  np.put_along_axis(logits, np.asarray(TOKENS)[..., None], -np.inf, -1)
  expected = np.where(valid(), gold - logits.max(-1), 0)
  found = gold_tokens(policy, policy.params, TOKENS, PROMPTS, LENGTHS).margin
  np.testing.assert_allclose(found, expected, atol=1e-4)


def test_rivals_are_drawn_from_the_softmax_without_the_gold_token(policy):
  # The mean over many rivals is the expectation, which enumeration of the vocabulary gives.
  logits = np.asarray(full_logits(policy, policy.params), np.float64)
  gold = np.take_along_axis(logits, np.asarray(TOKENS)[..., None], -1)
  others = logits.copy()
  np.put_along_axis(others, np.asarray(TOKENS)[..., None], -np.inf, -1)
  share = np.exp(others - others.max(-1, keepdims=True))
  share /= share.sum(-1, keepdims=True)
  expected = np.where(valid(), (share * np.logaddexp(0, logits - gold)).sum(-1), 0)
  found = gold_tokens(
    policy, policy.params, TOKENS, PROMPTS, LENGTHS, keys=KEYS, num_rivals=20_000
  ).pairwise
  np.testing.assert_allclose(found, expected, atol=0.05, rtol=0.02)


def test_chunks_and_padding_change_nothing(policy):
  def losses(tokens, chunk):
    found = gold_tokens(
      policy, policy.params, tokens, PROMPTS, LENGTHS, keys=KEYS, num_rivals=3, chunk=chunk
    )
    return np.stack(found)[:, :, : TOKENS.shape[1]]

  whole = losses(TOKENS, None)
  np.testing.assert_allclose(losses(TOKENS, 3), whole, atol=1e-5)
  np.testing.assert_allclose(losses(jnp.pad(TOKENS, ((0, 0), (0, 5))), 4), whole, atol=1e-5)


def test_gradients_match_finite_differences(policy):
  direction = jax.tree.map(
    lambda p: jax.random.normal(jax.random.key(p.size), p.shape), policy.params
  )

  @jax.jit
  def total(step):
    params = jax.tree.map(lambda p, d: p + step * d, policy.params, direction)
    found = gold_tokens(policy, params, TOKENS, PROMPTS, LENGTHS, keys=KEYS, num_rivals=4, chunk=4)
    return found.pairwise.sum() + found.margin.sum() - found.logprobs.sum()

  step = 2e-4
  difference = (total(step) - total(-step)) / (2 * step)
  np.testing.assert_allclose(jax.grad(total)(0.0), difference, rtol=2e-2)


def test_rivals_need_keys(policy):
  with pytest.raises(ValueError, match="num_rivals=2 needs keys"):
    gold_tokens(policy, policy.params, TOKENS, PROMPTS, LENGTHS, num_rivals=2)
