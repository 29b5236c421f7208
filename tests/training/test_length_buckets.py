"""Rollouts sorted by length: what a micro-batch holds, and in which width it is computed."""

import jax.numpy as jnp
import numpy as np
import pytest

from tea_jax.runs.length_cut import bucket_widths, length_cut
from tea_jax.training.length_buckets import by_width, cut_by_length

P, M, T = 4, 6, 8


def _tree():
  rng = np.random.default_rng(0)
  values = jnp.arange(P * M * T).reshape(P, M, T)
  return {
    "lengths": jnp.asarray(rng.integers(1, T + 1, (P, M))),
    "tokens": values,
    "prompt_lengths": jnp.arange(P),
    "old_logprobs": None,
  }


@pytest.mark.parametrize("micro", [0, 2, 4, 6, 12, 24])
def test_cutting_and_joining_restores_the_order(micro):
  tree = _tree()
  cut = length_cut(P, M, micro, 3)
  pieces, join = cut_by_length(tree, cut)
  assert pieces["tokens"].shape == (P * M // (cut.units * cut.rollouts), *cut, T)
  np.testing.assert_array_equal(join(pieces["tokens"]), tree["tokens"])
  own = pieces["tokens"][..., 0] // (M * T)
  np.testing.assert_array_equal(
    own, np.broadcast_to(pieces["prompt_lengths"][..., None], own.shape)
  )
  longest = np.asarray(pieces["lengths"]).max((1, 2))
  assert (np.diff(longest) >= 0).all()
  assert longest[0] < T or len(longest) == 1


def test_a_group_is_cut_into_as_many_units_as_there_are_widths():
  assert length_cut(4, 16, 16, 4) == (4, 4)
  assert length_cut(4, 16, 0, 4) == (4, 4)
  assert length_cut(2, 64, 32, 3) == (1, 32)  # two units: three do not divide a group of 64
  assert length_cut(4, 16, 2, 4) == (1, 2)  # micro-batches that are smaller than such a unit
  assert length_cut(4, 6, 12, 1) == (2, 6)


def test_devices_divide_the_units_of_a_micro_batch():
  assert length_cut(8, 16, 32, 2, shards=4) == (4, 8)
  assert length_cut(2, 16, 16, 2, shards=4) == (4, 4)  # rather four units a group than a rest
  assert length_cut(3, 5, 5, 2, shards=4) == (1, 5)


@pytest.mark.parametrize("longest, width", [(1, 2), (2, 2), (3, 4), (6, 6), (7, 8), (8, 8)])
def test_the_narrowest_width_that_fits_is_computed(longest, width):
  def compute(micro):
    return jnp.asarray(micro["tokens"].shape[-1]), micro["tokens"]

  tokens = jnp.ones((2, 3, T))
  micro = {"lengths": jnp.full((2, 3), longest), "tokens": tokens, "old_logprobs": None}
  used, values = by_width(compute, bucket_widths(T, 4))(micro)
  assert used == width
  np.testing.assert_array_equal(values, tokens * (jnp.arange(T) < width))
