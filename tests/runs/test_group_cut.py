"""Shapes of micro-batches, and groups that devices share."""

from tea_jax.runs.group_cut import micro_batch_shape, spread_factor


def test_micro_batches_hold_rollouts_of_every_shard():
  assert micro_batch_shape(8, 64, 64, shards=8) == (8, 8)
  assert micro_batch_shape(8, 64, 128, shards=2) == (2, 64)
  # What does not divide stays whole.
  assert micro_batch_shape(3, 64, 64, shards=2) == (1, 64)


def test_groups_are_cut_into_the_fewest_parts_that_devices_divide():
  assert spread_factor(4, 6, 2) == 1
  assert spread_factor(2, 6, 4) == 2
  # Six rollouts have no five parts.
  assert spread_factor(2, 6, 5) == 1
