import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tea_jax.advantages import cat_best_of_n, cat_majority, grpo
from tea_jax.advantages.tracking import (
  append_rewards,
  moving_threshold,
  reward_buffer,
  reward_quantiles,
  update_threshold,
)


def filled(values, capacity=8, steps=None):
  buffer = reward_buffer(capacity)
  for i, value in enumerate(values):
    step = 0 if steps is None else steps[i]
    buffer = append_rewards(buffer, jnp.array([value]), step=step)
  return buffer


def test_empty_buffer_says_one_half():
  quantiles = reward_quantiles(reward_buffer(4), jnp.array([[-1.0, 3.0]]))
  np.testing.assert_array_equal(quantiles, 0.5)


def test_uniform_quantiles_are_smoothed_strict_ranks():
  buffer = filled([1.0, 2.0, 2.0, 5.0])
  quantiles = reward_quantiles(buffer, jnp.array([0.0, 2.0, 3.0, 9.0]))
  np.testing.assert_allclose(quantiles, np.array([1, 2, 4, 5]) / 6, rtol=1e-6)


def test_quantiles_are_clipped():
  buffer = filled([0.0] * 4, capacity=4)
  quantiles = reward_quantiles(buffer, jnp.array([-1.0, 1.0]), smoothing=0.0)
  np.testing.assert_allclose(quantiles, [0.001, 0.999], rtol=1e-6)


def test_the_oldest_rewards_leave_first():
  buffer = filled([1.0, 2.0, 3.0, 4.0, 5.0], capacity=3)
  assert sorted(np.asarray(buffer.rewards).tolist()) == [3.0, 4.0, 5.0]


def test_a_batch_larger_than_the_buffer_keeps_its_last_rewards():
  buffer = append_rewards(filled([9.0], capacity=3), jnp.arange(10.0).reshape(2, 5), step=1)
  assert sorted(np.asarray(buffer.rewards).tolist()) == [7.0, 8.0, 9.0]
  assert int(buffer.total) == 11


def test_masked_rewards_do_not_enter():
  rewards = jnp.array([[1.0, jnp.nan, 2.0], [jnp.nan, 3.0, 4.0]])
  buffer = append_rewards(reward_buffer(4), rewards, step=2, where=~jnp.isnan(rewards))
  np.testing.assert_array_equal(buffer.rewards, [1, 2, 3, 4])
  np.testing.assert_array_equal(buffer.steps, 2)


def test_old_rewards_weigh_less():
  buffer = filled([0.0, 0.0, 2.0, 2.0], steps=[1, 2, 3, 4])
  weights = 0.5 ** (7 - np.array([1.0, 2, 3, 4]))
  quantile = reward_quantiles(buffer, jnp.array([1.0]), step=7, decay=0.5, smoothing=0.0)
  np.testing.assert_allclose(quantile, weights[:2].sum() / weights.sum(), rtol=1e-6)


def test_no_decay_is_uniform_and_very_old_buffers_do_not_underflow():
  buffer = filled([0.0, 2.0], steps=[1, 2])
  for decay, expected in ((1.0, 0.5), (0.5, 1 / 3)):
    quantile = reward_quantiles(buffer, jnp.array([1.0]), step=100_000, decay=decay, smoothing=0.0)
    np.testing.assert_allclose(quantile, expected, rtol=1e-6)


def test_threshold_moves_exponentially_from_its_first_batch():
  state = update_threshold(moving_threshold(), jnp.array(4.0), decay=0.75)
  assert float(state.value) == 4.0
  state = update_threshold(state, jnp.array(8.0), decay=0.75)
  assert float(state.value) == 5.0


def test_tracked_best_of_n_reads_before_it_writes():
  rule = cat_best_of_n(budget=3, quantile="tracked", buffer_capacity=6, weight_normalization="none")
  state = rule.init()
  first, second = jnp.array([[0.0, 1.0, 2.0]]), jnp.array([[0.5, 1.5, 9.0]])
  advantages, state = rule.update(state, first, step=0)
  z_scores = np.asarray(grpo(normalize=True)(first))
  np.testing.assert_allclose(advantages, 3 * 0.5**2 * z_scores, rtol=1e-5)
  advantages, state = rule.update(state, second, step=1)
  share = np.array([2, 3, 4]) / 5
  z_scores = np.asarray(grpo(normalize=True)(second))
  np.testing.assert_allclose(advantages, 3 * share**2 * z_scores, rtol=1e-5)
  assert int(state.total) == 6


def test_tracked_majority_follows_the_moving_average():
  rule = cat_majority(budget=8, threshold="tracked", decay=0.5, weight_normalization="none")
  rewards = jnp.array([[1.0, 0, 0, 0, 0, 0, 0, 0], [1.0, 1, 1, 1, 1, 1, 1, 0]])
  answers = jnp.array([[0, 1, 1, 1, 2, 3, 4, 5], [0, 0, 0, 0, 0, 0, 0, 1]])
  # Thresholds of the groups: 3 of 8 votes -> 4; 1 of 8 -> 2; their mean 3.
  advantages, state = rule.update(rule.init(), rewards, step=0, answers=answers)
  assert float(state.value) == 3.0
  direct = rule(rewards, thresholds=3.0)
  np.testing.assert_allclose(advantages, direct, rtol=1e-6)
  _, state = rule.update(state, rewards[:1], step=1, answers=answers[:1])
  assert float(state.value) == 3.5


def test_a_stateless_rule_passes_its_state_through():
  rewards = jnp.array([[1.0, 2.0]])
  advantages, state = grpo().update(grpo().init(), rewards, step=3)
  np.testing.assert_allclose(advantages, [[-0.5, 0.5]])
  assert state == ()


def test_states_are_pytrees_that_jit_and_flatten():
  rule = cat_best_of_n(budget=3, quantile="tracked", buffer_capacity=6)
  step = jax.jit(lambda state, rewards, i: rule.update(state, rewards, step=i))
  state = rule.init()
  for i in range(3):
    advantages, state = step(state, jnp.array([[0.0, 1.0, float(i)]]), i)
  leaves, structure = jax.tree.flatten(state)
  assert all(isinstance(leaf, jax.Array) for leaf in leaves)
  restored = jax.tree.unflatten(structure, [np.asarray(leaf) for leaf in leaves])
  again, _ = rule.update(restored, jnp.array([[0.0, 1.0, 2.0]]), step=3)
  expected, _ = rule.update(state, jnp.array([[0.0, 1.0, 2.0]]), step=3)
  np.testing.assert_array_equal(again, expected)
  assert np.all(np.isfinite(np.asarray(advantages)))


def test_arguments_out_of_range_are_refused():
  with pytest.raises(ValueError, match="capacity=0"):
    reward_buffer(0)
  with pytest.raises(ValueError, match="decay=0"):
    reward_quantiles(reward_buffer(2), jnp.zeros(1), decay=0)
  with pytest.raises(ValueError, match="decay=1"):
    update_threshold(moving_threshold(), jnp.zeros(()), decay=1)
  with pytest.raises(ValueError, match="needs answers="):
    cat_majority(threshold="tracked").update(moving_threshold(), jnp.zeros((1, 4)), step=0)
