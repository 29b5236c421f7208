"""Batches of pairs: their order, which keeps padding low, and their padded arrays."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from tea_jax.data import PromptIterator
from tea_jax.data.supervised import EncodedPairs, length_grouped
from tea_jax.rollout.cache import bucket
from tea_jax.training.supervised_update import PairBatch


class PairIterator(PromptIterator):
  """Endless batches of pair indices that are padded to the same width; see `length_grouped`.

  Within a width the order is random: batches of one exact length would save nothing, and their
  gradients would all pull the end of a text to that length.
  """

  def __init__(self, lengths: np.ndarray, *, batch_size: int, key: jax.Array):
    super().__init__(len(lengths), batch_size=batch_size, key=key)
    self._widths = np.array([_width(length) for length in lengths])

  def _epoch_order(self, epoch: int) -> np.ndarray:
    return self._grouped_order(epoch)

  @functools.lru_cache(maxsize=2)  # noqa: B019 (an iterator lives as long as its run)
  def _grouped_order(self, epoch: int) -> np.ndarray:
    seed = np.asarray(jax.random.key_data(jax.random.fold_in(self._key, epoch)))
    return length_grouped(
      super()._epoch_order(epoch),
      self._widths,
      batch_size=self.batch_size,
      rng=np.random.default_rng(seed),
    )


def make_batch(
  pairs: EncodedPairs,
  chosen: np.ndarray,
  *,
  keys: jax.Array | None = None,
  rows: int | None = None,
) -> PairBatch:
  """Pads the chosen pairs to the bucket of the longest.

  Args:
    pairs: with token ids.
    chosen: indices.
    keys: of the rivals, one a row.
    rows: B; missing rows repeat pairs without their completions and do not count.
  """
  rows = rows or len(chosen)
  filled = np.resize(chosen, rows)
  lengths = pairs.lengths[filled]
  prompts = np.asarray(pairs.prompt_lengths, np.int32)[filled]
  tokens = np.zeros((rows, _width(lengths.max())), np.int32)
  for row, index in enumerate(filled):
    tokens[row, : lengths[row]] = pairs.tokens[index]
  lengths = np.where(np.arange(rows) < len(chosen), lengths, prompts)
  return PairBatch(jnp.asarray(tokens), jnp.asarray(prompts), jnp.asarray(lengths), keys)


def _width(length: int) -> int:
  return bucket(int(length), smallest=16)


def row_keys(key: jax.Array, indices: np.ndarray) -> jax.Array:
  """A key for each pair, by its index: its rivals do not depend on its place in the batch."""
  return jax.vmap(lambda index: jax.random.fold_in(key, index))(np.asarray(indices, np.uint32))
