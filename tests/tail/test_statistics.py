"""Tail vectors: exact values, laws of transformation, masks, extremes of scale, derivatives."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tea_jax.tail import TailVector, invert_tail, tail_constants, tail_count, tail_vector


def _reference(rewards, tail_fraction, floor=1e-12):
  """The definition, in float64: sort, take k, mean and population standard deviation."""
  rewards = np.asarray(rewards, np.float64)
  count = tail_count(rewards.shape[-1], tail_fraction)
  top = np.sort(rewards, axis=-1)[..., -count:]
  return TailVector(top[..., 0], top.mean(-1), np.maximum(top.std(-1), floor))


def _assert_close(tail, expected, **tolerance):
  for name, value, reference in zip(TailVector._fields, tail, expected, strict=True):
    np.testing.assert_allclose(value, reference, err_msg=name, **tolerance)


def _normal(*shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_tail_of_a_small_group_by_hand():
  tail = tail_vector(jnp.array([5.0, 1.0, 2.0, 4.0, 3.0, 0.0, -1.0, 9.0]), 0.5)
  _assert_close(tail, (3.0, 5.25, np.std([3.0, 4.0, 5.0, 9.0])), rtol=1e-6)


# Both sides of every choice of algorithm: unrolled networks and searches, odd and prime sizes.
@pytest.mark.parametrize(
  "num_rollouts, tail_fraction",
  [
    (1, 0.5),
    (2, 0.25),
    (3, 0.5),
    (5, 0.5),
    (31, 0.1),
    (64, 0.25),
    (128, 0.1),
    (129, 0.5),
    (1031, 0.25),
  ],
)
def test_tail_vector_matches_its_definition(num_rollouts, tail_fraction):
  rewards = _normal(3, num_rollouts)
  _assert_close(tail_vector(rewards, tail_fraction), _reference(rewards, tail_fraction), rtol=2e-6)


@pytest.mark.parametrize("num_rollouts", [16, 150])
def test_many_groups_agree_with_one_at_a_time(num_rollouts):
  rewards = _normal(2, 5, num_rollouts)
  tail = tail_vector(rewards, 0.25)
  chex.assert_shape(tail, (2, 5))
  _assert_close(tail, _reference(rewards, 0.25), rtol=2e-6)
  _assert_close(tail_vector(rewards[1, 2], 0.25), [v[1, 2] for v in tail], rtol=1e-6)


@pytest.mark.parametrize("num_rollouts", [16, 150])
def test_ties_at_the_threshold_do_not_matter(num_rollouts):
  rewards = np.random.default_rng(3).integers(-2, 3, (50, num_rollouts)).astype(np.float32)
  _assert_close(tail_vector(rewards, 0.25), _reference(rewards, 0.25), rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("num_rollouts", [16, 150])
def test_negative_zero_is_zero(num_rollouts):
  rewards = jnp.where(jnp.arange(num_rollouts) % 2 == 0, 0.0, -0.0)
  _assert_close(tail_vector(rewards, 0.25), (0.0, 0.0, 1e-12))


@pytest.mark.parametrize("num_rollouts", [1, 16, 150])
@pytest.mark.parametrize("value", [0.35, -1e30, 2e-38, 0.0])
def test_constant_group_gives_its_value_exactly(num_rollouts, value):
  tail = tail_vector(jnp.full((2, num_rollouts), value), 0.25)
  np.testing.assert_array_equal(tail.threshold, np.float32(value))
  np.testing.assert_array_equal(tail.mean, np.float32(value))
  np.testing.assert_array_equal(tail.scale, np.float32(1e-12))


@pytest.mark.parametrize("num_rollouts", [16, 150])
@pytest.mark.parametrize("unit", [1e-6, 1e6, 1e30, 1e-30])
def test_any_unit_of_reward_gives_the_same_tail(num_rollouts, unit):
  rewards = _normal(4, num_rollouts)
  tail = tail_vector(rewards * np.float32(unit), 0.25, scale_floor=1e-35)
  _assert_close([v / unit for v in tail], _reference(rewards, 0.25), rtol=1e-5)


def test_scale_is_clipped_at_its_floor():
  rewards = jnp.array([0.0, 0.0, 1.0, 1.5])
  assert tail_vector(rewards, 0.5, scale_floor=0.1).scale == pytest.approx(0.25)
  assert tail_vector(rewards, 0.5, scale_floor=0.7).scale == pytest.approx(0.7)


def test_a_tail_of_equal_rewards_over_one_threshold_keeps_its_scale():
  # 1023 ones and a zero at the threshold: one-pass formulas lose the variance here.
  rewards = np.concatenate([np.ones(1023), np.zeros(3073)]).astype(np.float32)
  _assert_close(tail_vector(rewards, 0.25), _reference(rewards, 0.25), rtol=1e-6)


def test_half_precision_is_computed_in_float32():
  rewards = jnp.asarray(_normal(64), jnp.bfloat16)
  tail = tail_vector(rewards, 0.25)
  chex.assert_type(list(tail), jnp.float32)
  _assert_close(tail, _reference(np.asarray(rewards, np.float32), 0.25), rtol=1e-6)


@pytest.mark.parametrize("num_rollouts", [16, 150])
def test_double_precision_is_kept(num_rollouts):
  rewards = np.random.default_rng(0).standard_normal((3, num_rollouts)) + 1000.0
  with jax.enable_x64(True):
    tail = tail_vector(rewards, 0.25)
    chex.assert_type(list(tail), jnp.float64)
    _assert_close(tail, _reference(rewards, 0.25), rtol=1e-12)


@pytest.mark.parametrize("num_rollouts", [13, 140])
def test_masked_rollouts_do_not_count(num_rollouts):
  rewards = _normal(40, num_rollouts)
  where = np.random.default_rng(1).random(rewards.shape) < 0.6
  tail = tail_vector(np.where(where, rewards, 1e9), 0.1, where=where)
  expected = [_reference(row[keep], 0.1) for row, keep in zip(rewards, where)]
  _assert_close(tail, [np.stack(v) for v in zip(*expected)], rtol=1e-5)


def test_a_mask_of_ones_is_no_mask():
  rewards = _normal(6, 64)
  where = np.ones(rewards.shape, bool)
  _assert_close(tail_vector(rewards, 0.25, where=where), tail_vector(rewards, 0.25), rtol=1e-6)


def test_a_group_of_which_nothing_counts_stays_finite():
  tail = tail_vector(_normal(2, 8), 0.25, where=np.zeros((2, 8), bool))
  _assert_close(tail, ([0, 0], [0, 0], [1e-12, 1e-12]), rtol=1e-6)


REWARDS = hnp.arrays(np.float32, 12, elements=st.floats(-8, 8, width=16))


@given(REWARDS, st.randoms(use_true_random=False))
@settings(deadline=None)
def test_order_of_the_rollouts_does_not_matter(rewards, random):
  shuffled = rewards.copy()
  random.shuffle(shuffled)
  _assert_close(tail_vector(shuffled, 0.25), tail_vector(rewards, 0.25), rtol=1e-6)


@given(REWARDS, st.integers(-64, 64), st.sampled_from([0.125, 0.5, 4.0, 32.0]))
@settings(deadline=None)
def test_shift_and_scale_pass_through(rewards, shift, scale):
  # Binary fractions, so that shifting and scaling are exact and ties stay ties.
  base = tail_vector(rewards, 0.25)
  moved = tail_vector(rewards * np.float32(scale) + np.float32(shift), 0.25)
  tolerance = {"rtol": 1e-5, "atol": 1e-5}
  np.testing.assert_allclose(moved.threshold, base.threshold * scale + shift, **tolerance)
  np.testing.assert_allclose(moved.mean, base.mean * scale + shift, **tolerance)
  np.testing.assert_allclose(moved.scale, np.maximum(base.scale * scale, 1e-12), **tolerance)


def test_inversion_recovers_the_gaussian_of_the_tail():
  for alpha in (0.001, 0.25, 0.5):
    c = tail_constants(alpha, 5000)
    tail = TailVector(
      *(
        jnp.float32(v)
        for v in (2.0 + 3.0 * c.quantile, 2.0 + 3.0 * c.mills_ratio, 3.0 * np.sqrt(c.tail_variance))
      )
    )
    loc, scale = invert_tail(tail, alpha)
    assert loc == pytest.approx(2.0, rel=1e-4)
    assert scale == pytest.approx(3.0, rel=1e-5)


@pytest.mark.parametrize("num_rollouts", [16, 150])
def test_derivatives_match_finite_differences(num_rollouts):
  with jax.enable_x64(True):
    rewards = np.random.default_rng(5).standard_normal(num_rollouts)

    def mixed(rewards):
      tail = tail_vector(rewards, 0.25)
      return tail.threshold + 2.0 * tail.mean + 3.0 * tail.scale

    gradient = jax.jit(jax.grad(mixed))(rewards)
    direction = np.random.default_rng(6).standard_normal(num_rollouts)
    step = 1e-5 * direction
    numerical = (mixed(rewards + step) - mixed(rewards - step)) / 2e-5
    assert gradient @ direction == pytest.approx(float(numerical), rel=1e-7)
    # A shift of all rewards moves threshold and mean by as much, and not the scale.
    assert jnp.sum(gradient) == pytest.approx(3.0)


@pytest.mark.parametrize("num_rollouts", [1, 16, 150])
def test_derivatives_of_a_constant_group_are_finite(num_rollouts):
  jacobian = jax.jit(jax.jacrev(lambda r: jnp.stack(tail_vector(r, 0.25))))(
    jnp.full(num_rollouts, 0.35)
  )
  np.testing.assert_allclose(jacobian.sum(axis=1), [1, 1, 0], rtol=1e-5)


def test_masked_derivatives_are_finite_and_zero_outside_the_mask():
  where = np.arange(16) % 2 == 0
  rewards = _normal(16)
  gradient = jax.jit(jax.grad(lambda r: sum(tail_vector(r, 0.25, where=where))))(rewards)
  chex.assert_tree_all_finite(gradient)
  np.testing.assert_array_equal(gradient[~where], 0.0)
  assert jnp.sum(gradient) == pytest.approx(2.0, rel=1e-5)


@pytest.mark.parametrize("num_rollouts", [16, 150])
def test_jit_and_vmap_change_nothing(num_rollouts):
  rewards = _normal(3, num_rollouts)
  plain = tail_vector(rewards, 0.25)
  _assert_close(jax.jit(lambda r: tail_vector(r, 0.25))(rewards), plain, rtol=1e-6)
  _assert_close(jax.vmap(lambda r: tail_vector(r, 0.25))(rewards), plain, rtol=1e-6)


def test_new_values_do_not_compile_again():
  chex.clear_trace_counter()
  compiled = jax.jit(chex.assert_max_traces(lambda r: tail_vector(r, 0.25), n=1))
  for seed in range(3):
    compiled(_normal(16, seed=seed))


def test_shapes_without_a_group_are_refused(unchecked):
  with pytest.raises(ValueError, match="hold no group"):
    tail_vector(jnp.float32(1.0), 0.25)
  with pytest.raises(ValueError, match="hold no group"):
    tail_vector(jnp.zeros((3, 0)), 0.25)
  with pytest.raises(ValueError, match="scale_floor=0"):
    tail_vector(jnp.zeros(4), 0.25, scale_floor=0)


@pytest.mark.parametrize(
  "num_rollouts, tail_fraction, count",
  [(30, 0.1, 3), (31, 0.1, 4), (1, 0.25, 1), (6, 0.25, 2), (8, 0.25, 2), (9, 0.25, 3), (5, 0.5, 3)],
)
def test_the_count_of_the_tail_is_rounded_up(num_rollouts, tail_fraction, count):
  assert tail_count(num_rollouts, tail_fraction) == count
