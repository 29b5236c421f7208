"""The exact worlds: best-of-N against enumeration, natural gradients against autodiff."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tea_jax.studies.kl_frontier import WORLDS, GaussianWorld, SoftmaxWorld, make_world


def small_world():
  generator = np.random.default_rng(0)
  rewards = np.array([[-1.0, 0.5, 0.5, 2.0], [0.0, 1.0, 3.0, 4.0]], np.float32)
  base = generator.dirichlet(np.ones(4), 2)
  features = generator.standard_normal((2, 4, 2)).astype(np.float32)
  return SoftmaxWorld(
    jnp.asarray(rewards), jnp.asarray(features), jnp.asarray(np.log(base), jnp.float32)
  )


def test_softmax_best_of_n_matches_enumeration():
  world, params = small_world(), jnp.array([0.7, -0.4])
  logits = world.base_logprobs + world.features @ params
  probabilities = np.asarray(jax.nn.softmax(logits, -1), np.float64)
  for budget in (1, 2, 3):
    expected = np.mean(
      [
        sum(
          np.prod([p[i] for i in draw]) * max(r[i] for i in draw)
          for draw in itertools.product(range(4), repeat=budget)
        )
        for p, r in zip(probabilities, np.asarray(world.rewards, np.float64))
      ]
    )
    assert float(world.best_of_n(params, budget)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", WORLDS)
def test_base_has_kl_zero_mean_zero_and_standard_rewards(name):
  world = make_world(name)
  start = world.start()
  assert float(world.kl(start)) == pytest.approx(0.0, abs=1e-6)
  assert float(world.best_of_n(start, 1)) == pytest.approx(0.0, abs=1e-5)
  draw = world.draw(start, jax.random.key(0), num_groups=512, num_rollouts=32)
  assert float(draw.rewards.std()) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize(
  ("world", "params"), [(GaussianWorld(), [0.4, 0.3]), (small_world(), [0.7, -0.4])]
)
def test_natural_gradient_of_kl_is_that_of_autodiff(world, params):
  params = jnp.array(params)
  expected = world.natural(params, jax.grad(world.kl)(params))
  np.testing.assert_allclose(world.kl_natural_gradient(params), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
  ("world", "params"),
  [(GaussianWorld(), [0.4, 0.3]), (make_world("two_modes"), [0.3, 0.1, 0.2, 0.1, 0.05, 0.0])],
)
def test_draws_follow_the_policy(world, params):
  params = jnp.array(params)
  draw = world.draw(params, jax.random.key(1), num_groups=2048, num_rollouts=32)
  assert float(draw.rewards.mean()) == pytest.approx(float(world.best_of_n(params, 1)), abs=0.03)
  assert float(draw.rewards.reshape(-1, 8).max(-1).mean()) == pytest.approx(
    float(world.best_of_n(params, 8)), abs=0.05
  )
  assert np.abs(np.asarray(draw.scores.mean((0, 1)))).max() < 0.03  # E score = 0
  # The score function's identity: d E r = E r score.
  expected = jax.grad(lambda p: world.best_of_n(p, 1))(params)
  estimate = jnp.mean(draw.rewards[..., None] * draw.scores, (0, 1))
  np.testing.assert_allclose(estimate, expected, atol=0.06)
  assert float(draw.quantiles.min()) >= 0
  assert float(draw.quantiles.max()) <= 1


def test_unknown_world_is_refused():
  with pytest.raises(ValueError, match="unknown world 'flat'; known: gaussian_policy"):
    make_world("flat")
