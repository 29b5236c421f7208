"""A tabular policy whose expectations are exact sums, and losses of each of its completions.

The policy writes up to two tokens of a vocabulary of 3; token 0 ends a completion. So there are
1 + 2 * 3 = 7 completions of different lengths, and every expectation is a sum of 7 terms.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from tea_jax.runs.objective import ObjectiveConfig
from tea_jax.training.objective import policy_loss, token_weights
from tea_jax.training.ratios import completion_mask

COMPLETIONS = [(0,)] + [(a, b) for a, b in itertools.product((1, 2), range(3))]
LENGTHS = np.array([[len(c) for c in COMPLETIONS]])
TOKENS = np.array([[c + (0,) * (2 - len(c)) for c in COMPLETIONS]])
REWARDS = np.array([[0.3, -1.0, 2.0, 0.7, 1.5, -0.2, 0.9]])


def parameters(seed):
  rng = np.random.default_rng(seed)
  return {"first": rng.normal(size=3), "second": rng.normal(size=(3, 3))}


def token_logprobs(params):
  """[1, 7, 2] log-probability of each token of every completion; 0 on padding."""
  first = jax.nn.log_softmax(params["first"])[TOKENS[..., 0]]
  second = jax.nn.log_softmax(params["second"])[TOKENS[..., 0], TOKENS[..., 1]]
  return jnp.stack([first, jnp.where(LENGTHS == 2, second, 0.0)], -1)


def token_entropy(params):
  def entropy(logits):
    return -(jax.nn.softmax(logits) * jax.nn.log_softmax(logits)).sum(-1)

  first = jnp.broadcast_to(entropy(params["first"]), TOKENS.shape[:2])
  return jnp.stack([first, entropy(params["second"])[TOKENS[..., 0]]], -1)


def completion_probabilities(params):
  return jnp.exp(token_logprobs(params).sum(-1))


def expected_gradient(loss_of_one, params):
  """sum_y pi(y) grad loss(y), the loss of one completion written with batch-of-one weights."""
  probabilities = completion_probabilities(params)

  def total(params):
    return jnp.sum(jax.lax.stop_gradient(probabilities) * loss_of_one(params))

  return jax.grad(total)(params)


def assert_close(actual, expected, atol=1e-12):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), actual, expected)


def largest_difference(actual, expected):
  return max(jax.tree.leaves(jax.tree.map(lambda a, b: np.abs(a - b).max(), actual, expected)))


def per_completion(params, *, config=None, rewards=REWARDS, **extra):
  """Loss of each completion as if it were a batch of its own, [1, 7]."""
  config = config or ObjectiveConfig()

  def one(i, params):
    def at(x):
      return x[:, i : i + 1]

    logprobs = at(token_logprobs(params))
    weights = token_weights(
      jnp.asarray(at(LENGTHS)), 2, aggregation=config.aggregation, max_completion_length=2
    )
    arrays = {k: at(v(params) if callable(v) else v) for k, v in extra.items()}
    return policy_loss(logprobs, jnp.asarray(at(rewards)), weights, config=config, **arrays)

  return jnp.stack([one(i, params) for i in range(7)])[None]


def token_mask():
  return completion_mask(jnp.asarray(LENGTHS), 2)
