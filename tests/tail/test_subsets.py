import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tea_jax import subset_averaged_gradient, subset_tea, tail_vector
from tea_jax.tail.subsets import cancelling_subsets, draw_orders, random_positions, subset_tail

KEY = jax.random.key(7)


def test_what_is_measured_is_what_is_trained():
  rewards = np.random.default_rng(0).normal(size=32).astype(np.float32)
  scores = np.random.default_rng(1).normal(size=(32, 3)).astype(np.float32)
  scores -= scores.mean(0)  # the rule's baseline then takes nothing off
  rule = subset_tea(num_orders=3, positive_part=False, budget=64)
  trained = rule(rewards, key=KEY) @ scores / 32
  setting = {"key": KEY, "num_orders": 3, "tail_fraction": 0.25, "budget": 64}
  measured = subset_averaged_gradient(rewards, scores, orders="independent", **setting)
  np.testing.assert_allclose(measured, trained, rtol=1e-5, atol=1e-6)
  reversed_pairs = subset_averaged_gradient(rewards, scores, **setting)
  assert np.abs(reversed_pairs - trained).max() > 1e-3


@pytest.mark.parametrize("orders", ["independent", "reversed"])
def test_every_order_is_a_permutation(orders):
  positions = np.asarray(draw_orders(KEY, (4, 9), 5, orders=orders))
  assert positions.shape == (5, 4, 9)
  np.testing.assert_array_equal(np.sort(positions, -1), np.broadcast_to(range(9), (5, 4, 9)))
  assert len({row.tobytes() for row in positions.reshape(-1, 9)}) == 20
  is_reverse = [np.array_equal(a, 8 - b) for a, b in itertools.pairwise(positions)]
  assert is_reverse == ([True, False, True, False] if orders == "reversed" else [False] * 4)


def test_rollouts_that_do_not_count_come_last():
  where = np.random.default_rng(0).random((50, 7)) < 0.6
  positions = np.asarray(random_positions(KEY, where.shape, jnp.asarray(where)))
  np.testing.assert_array_equal(positions < where.sum(-1, keepdims=True), where)


def test_each_place_is_as_likely():
  positions = np.asarray(random_positions(KEY, (40_000, 5)))
  shares = (positions[:, :, None] == np.arange(5)).mean(0)
  np.testing.assert_allclose(shares, 0.2, atol=4 * np.sqrt(0.2 * 0.8 / 40_000))


@pytest.mark.parametrize("magnitude", [1e-30, 1.0, 1e30])
def test_the_tail_of_a_subset_is_that_of_its_members_alone(magnitude):
  generator = np.random.default_rng(0)
  rewards = np.sort(generator.integers(0, 6, (20, 16)) * magnitude).astype(np.float32)[:, ::-1]
  positions = np.asarray(random_positions(KEY, rewards.shape))
  members = np.stack([row[place < 8] for row, place in zip(rewards, positions, strict=True)])
  found = subset_tail(jnp.asarray(rewards), jnp.asarray(positions < 8), 2, 1e-12)
  for value, expected in zip(found, tail_vector(members, 0.25), strict=True):
    np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_weights_carry_the_share_of_the_group():
  half, whole = cancelling_subsets(32, 0.25, fractions=(0.5, 1.0), order=1)
  assert (half.size, half.tail_count, half.weight, half.is_whole) == (16, 4, -2.0, False)
  assert (whole.size, whole.tail_count, whole.weight, whole.is_whole) == (32, 8, 2.0, True)


def test_unknown_orders_are_refused():
  with pytest.raises(ValueError, match="num_orders=0 must be at least 1"):
    draw_orders(KEY, (4,), 0)
  with pytest.raises(ValueError, match="orders='sorted' must be"):
    draw_orders(KEY, (4,), 2, orders="sorted")
