"""Prompts that share a tail."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tea_jax.scaling import predict_best_of_n, predict_with_shared_shape
from tea_jax.tail import expected_maximum


def test_it_halves_the_variance_where_prompts_share_a_shape():
  loc_key, scale_key, key = jax.random.split(jax.random.key(0), 3)
  loc = 3.0 * jax.random.normal(loc_key, (200, 1))
  scale = jnp.exp(0.5 * jax.random.normal(scale_key, (200, 1)))
  rewards = loc + scale * jax.random.normal(key, (200, 50))
  truth = loc + scale * expected_maximum(128)
  alone = (predict_best_of_n(rewards, (128,)) - truth) / scale
  shared = (predict_with_shared_shape(rewards, (128,)) - truth) / scale
  assert jnp.mean(shared**2) < 0.5 * jnp.mean(alone**2)
  assert abs(jnp.mean(shared)) < 0.1


def test_prompts_without_spread_neither_count_nor_move():
  rewards = jax.random.normal(jax.random.key(0), (3, 40))
  with_constant = jnp.concatenate([rewards, jnp.full((1, 40), 7.0)])
  predicted = predict_with_shared_shape(with_constant, (64,))
  np.testing.assert_allclose(predicted[:3], predict_with_shared_shape(rewards, (64,)), rtol=1e-5)
  assert predicted[3, 0] == 7.0


def test_one_prompt_alone_has_its_own_prediction():
  rewards = jax.random.gumbel(jax.random.key(0), (1, 60))
  own = predict_best_of_n(rewards, (64, 1000))
  np.testing.assert_allclose(predict_with_shared_shape(rewards, (64, 1000)), own, rtol=1e-4)


def test_rewards_without_prompts_are_refused(unchecked):
  with pytest.raises(ValueError, match="share no shape"):
    predict_with_shared_shape(jnp.ones(5), (64,))
