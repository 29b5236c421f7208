"""Micro-batches: order, shards, and groups that devices share."""

import jax.numpy as jnp
import numpy as np
import pytest

from tea_jax.runs.group_cut import micro_batch_shape
from tea_jax.training.micro_batches import (
  join_micro_batches,
  split_micro_batches,
  spread_groups,
)

P, M = 4, 6


@pytest.mark.parametrize("shards", [1, 2, 4])
def test_splitting_and_joining_restores_the_order(shards):
  values = jnp.arange(P * M * 2).reshape(P, M, 2)
  prompts = jnp.arange(P)
  tree = {"lengths": values[..., 0], "values": values, "prompt_lengths": prompts}
  for size in (1, 2, 3, 6, 12, 24):
    shape = micro_batch_shape(P, M, size, shards=shards)
    split = split_micro_batches(tree, shape)
    assert split["values"].shape[:3] == (P * M // size, *shape)
    np.testing.assert_array_equal(join_micro_batches(split["values"], P, M), values)
    # Every part of a group meets its own prompt.
    own = split["values"][:, :, 0, 0] // (2 * M)
    np.testing.assert_array_equal(split["prompt_lengths"], own)


def test_groups_are_cut_where_prompts_are_fewer_than_devices():
  values = jnp.arange(2 * 6).reshape(2, 6)
  tree = {"lengths": values, "prompt_lengths": jnp.arange(2), "old_logprobs": None}
  cut = spread_groups(tree, 4)
  np.testing.assert_array_equal(cut["lengths"], values.reshape(4, 3))
  np.testing.assert_array_equal(cut["prompt_lengths"], [0, 0, 1, 1])
  assert spread_groups(tree, 5)["lengths"].shape == (2, 6)
