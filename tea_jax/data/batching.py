"""The order of prompts: seeded, resumable, its whole state two numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import numpy as np

from tea_jax.runtime.keys import threefry


@dataclasses.dataclass(frozen=True)
class IteratorState:
  """Where an iterator stands: the next batch starts at `position` of `epoch`'s order."""

  epoch: int = 0
  position: int = 0


class PromptIterator:
  """Endless batches of prompt indices; epoch e runs through permutation(fold_in(key, e)).

  All batches have the same size and no prompt occurs twice in a batch: the last
  `num_prompts % batch_size` prompts of an epoch's order are left out (others in each epoch).

  Example:
    >>> batches = PromptIterator(100, batch_size=4, key=jax.random.key(0))
    >>> indices = next(batches)  # [4]
    >>> saved = batches.state_dict()  # {"epoch": 0, "position": 4, ...}: JSON
  """

  def __init__(
    self, num_prompts: int, *, batch_size: int, key: jax.Array, state: IteratorState | None = None
  ):
    """Args:
    num_prompts: prompts in the data, at least `batch_size`.
    batch_size: prompts a step.
    key: PRNG key of the orders.
    state: where to start.
    """
    if not 1 <= batch_size <= num_prompts:
      raise ValueError(
        f"batch_size={batch_size} must lie between 1 and the number of prompts, {num_prompts}"
      )
    self.num_prompts = num_prompts
    self.batch_size = batch_size
    self.state = state or IteratorState()
    self._key = threefry(key)
    self._order: tuple[int, np.ndarray] | None = None

  def __iter__(self) -> PromptIterator:
    return self

  def __next__(self) -> np.ndarray:
    """Indices `[batch_size]` of the next prompts."""
    epoch, position = self.state.epoch, self.state.position
    if position + self.batch_size > self.num_prompts:
      epoch, position = epoch + 1, 0
    batch = self._epoch_order(epoch)[position : position + self.batch_size]
    self.state = IteratorState(epoch, position + self.batch_size)
    return batch.copy()

  def state_dict(self) -> dict[str, int]:
    """The state as JSON, with the sizes that it is only valid for."""
    return {
      **dataclasses.asdict(self.state),
      "num_prompts": self.num_prompts,
      "batch_size": self.batch_size,
    }

  def load_state_dict(self, saved: Mapping[str, int]) -> None:
    """Goes on from a saved state.

    Raises:
      ValueError: the state is of other data or another batch size: going on would repeat or skip
        prompts.
    """
    for name, value in (("num_prompts", self.num_prompts), ("batch_size", self.batch_size)):
      if saved[name] != value:
        raise ValueError(
          f"the saved position is for {name}={saved[name]}, but the run has {name}={value}; "
          "resume with the same data and batch size"
        )
    self.state = IteratorState(int(saved["epoch"]), int(saved["position"]))

  def _epoch_order(self, epoch: int) -> np.ndarray:
    if self._order is None or self._order[0] != epoch:
      key = jax.random.fold_in(self._key, epoch)
      self._order = (epoch, np.asarray(jax.random.permutation(key, self.num_prompts)))
    return self._order[1]
