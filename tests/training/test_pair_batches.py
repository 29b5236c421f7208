"""Batches of pairs: a width each, and lengths mixed within it."""

import jax
import numpy as np

from tea_jax.rollout.cache import bucket
from tea_jax.training.pair_batches import PairIterator


def epoch(lengths, batch_size):
  iterator = PairIterator(lengths, batch_size=batch_size, key=jax.random.key(0))
  return np.array([next(iterator) for _ in range(len(lengths) // batch_size)])


def test_lengths_of_one_width_are_mixed():
  """Batches of one exact length would all pull the end of a text to that length."""
  lengths = np.random.default_rng(0).integers(33, 49, 640)
  batches = epoch(lengths, 16)
  assert sorted(batches.ravel()) == list(range(640))
  spread = lengths[batches].std(axis=1)
  assert spread.min() > 0.4 * lengths.std()


def test_batches_have_the_width_of_their_rows():
  """Two widths, as many rows of each in a window as fill whole batches: none pads a short row."""
  lengths = np.resize([20, 60], 512)
  widths = np.array([bucket(int(n), smallest=16) for n in lengths])[epoch(lengths, 8)]
  mixed = (widths.min(axis=1) != widths.max(axis=1)).sum()
  assert mixed <= 512 // (16 * 8)
