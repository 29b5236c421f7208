"""Policies drawn back to one KL: the measured KL is the exact one, and the place is found."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tea_jax.data import EncodedPrompts, Prompt
from tea_jax.evaluation.drawn_back import blend, draw_back, measured_kl
from tea_jax.models.causal_lm import init_params
from tea_jax.models.logprobs import token_logprobs
from tea_jax.rollout.engine import RolloutEngine
from tea_jax.rollout.sampling import SamplingConfig
from tests.training import tiny


@pytest.mark.parametrize("curve", [lambda s: 3 * s**2, lambda s: 2 * s**3, lambda s: 4 * s**1.5])
def test_the_place_is_found_on_curves_that_are_not_quadratic(curve):
  asked = []

  def kl_of(share):
    asked.append(share)
    return curve(share), 0.01

  found = draw_back(kl_of, 0.5)
  assert found.kl == pytest.approx(0.5, rel=0.05)
  assert asked[0] == 1.0
  assert len(asked) <= 4


def test_a_policy_that_stayed_nearer_is_refused():
  with pytest.raises(ValueError, match=r"runs/a is at a KL of 0.300 .* below 0.5"):
    draw_back(lambda share: (0.3 * share, 0.02), 0.5, name="runs/a")
  # Within the tolerance it is taken as it is.
  assert draw_back(lambda share: (0.49, 0.02), 0.5).share == 1.0
  for target in (0.0, -1.0, float("nan")):
    with pytest.raises(ValueError, match="positive number"):
      draw_back(lambda share: (share, 0.0), target)


def test_ends_of_the_line_are_the_policies():
  base, trained = (init_params(tiny.MODEL, jax.random.key(seed)) for seed in (0, 1))
  for share, expected in ((0.0, base), (1.0, trained)):
    for a, b in zip(jax.tree.leaves(blend(base, trained, share)), jax.tree.leaves(expected)):
      np.testing.assert_allclose(a, b, atol=1e-6)


def test_the_measured_kl_is_the_exact_one():
  policy = tiny.policy()
  base = policy.params
  moved = jax.tree.map(lambda x: 1.1 * x, base)
  prompts = EncodedPrompts(
    [Prompt(id=i, text=str(i)) for i in range(5)], [[1 + i] for i in range(5)], []
  )
  sampling = SamplingConfig(max_completion_length=1, temperature=0.8)
  engine = RolloutEngine(policy, sampling)
  kl, error = measured_kl(
    engine, policy, moved, base, prompts, key=jax.random.key(0), num_samples=400
  )
  # One token: the sum over the vocabulary.
  size = tiny.MODEL.vocab_size
  score = jax.jit(functools.partial(token_logprobs, policy, temperature=0.8))
  exact = []
  for tokens in prompts.tokens:
    rows = jnp.asarray([[*tokens, token] for token in range(size)])
    lengths = jnp.full(size, 2)
    logs = [
      np.asarray(score(params, rows, lengths - 1, lengths).logprobs)[:, 1]
      for params in (moved, base)
    ]
    exact.append(np.sum(np.exp(logs[0]) * (logs[0] - logs[1])))
  assert error < 0.2 * np.mean(exact)
  assert kl == pytest.approx(np.mean(exact), abs=4 * error)
