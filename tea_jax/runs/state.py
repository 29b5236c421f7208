"""The state of a run between two steps, and its way into a checkpoint and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tea_jax.runs.checkpoints import CheckpointStore


@dataclasses.dataclass(frozen=True)
class Best:
  """The best validation so far.

  Attributes:
    step: updates done when it was measured.
    score: its value.
  """

  step: int
  score: float


class State(NamedTuple):
  """All that changes from step to step, and that a checkpoint holds.

  Attributes:
    trainable, optimizer, tracked: arrays: parameters, optimiser state, the rule's statistics.
    iterator: of the prompts, JSON.
    best: of the validations so far.
    skipped: consecutive updates that were not finite.
  """

  trainable: Any
  optimizer: Any
  tracked: Any
  iterator: Mapping[str, int]
  best: Best | None = None
  skipped: int = 0

  @property
  def arrays(self) -> dict[str, Any]:
    """What is saved as arrays; the rest is JSON."""
    return {
      "trainable": self.trainable,
      "optimizer": self.optimizer,
      "tracked": self.tracked,
    }

  @property
  def intact(self) -> bool:
    """False if an update took the buffers and did not return."""
    return not any(leaf.is_deleted() for leaf in jax.tree.leaves(self.arrays))


class Restored(NamedTuple):
  """Where a run goes on.

  Attributes:
    step: the next step.
    state: of the run.
    root: root key.
    log_offsets: bytes of the logs that belong to the steps before; None for a new run.
    pending: metrics and timings of step `step - 1`, if its validation is still to be done.
  """

  step: int
  state: State
  root: jax.Array
  log_offsets: Mapping[str, int] | None = None
  pending: Sequence[Mapping[str, Any]] | None = None


def save_state(
  store: CheckpointStore,
  step: int,
  state: State,
  *,
  root: jax.Array,
  log_offsets: Mapping[str, int],
  prompts: int,
  pending: Sequence[Mapping[str, Any]] | None = None,
) -> None:
  """Writes the state before `step`; `prompts` is the checksum of the run's prompts."""
  meta = {
    "key": np.asarray(jax.random.key_data(root)).tolist(),
    "iterator": dict(state.iterator),
    "best": None if state.best is None else dataclasses.asdict(state.best),
    "skipped": state.skipped,
    "logs": dict(log_offsets),
    "prompts": prompts,
    "pending": pending,
  }
  store.save(step, state.arrays, meta)


def restore_state(
  store: CheckpointStore, fresh: State, root: jax.Array, *, prompts: int
) -> Restored:
  """The last checkpoint that is whole, or the fresh state if there is none.

  The fresh optimiser state is freed before a checkpoint is read, so that there is room for it.

  Raises:
    ValueError: if the run was started with other prompts.
  """
  abstract = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), fresh.arrays
  )
  if store.steps():
    jax.tree.map(lambda leaf: leaf.delete(), fresh.optimizer)
  found = store.restore_latest(abstract)
  if found is None:
    return Restored(0, fresh, root)
  meta = found.meta
  if meta.get("prompts", prompts) != prompts:
    raise ValueError(
      "the prompts of this run are other ones than at its start (another file, template or "
      "tokenizer); go on with the same, or choose another --run-folder."
    )
  state = State(
    **found.state,
    iterator=meta["iterator"],
    best=None if meta["best"] is None else Best(**meta["best"]),
    skipped=int(meta["skipped"]),
  )
  root = jax.random.wrap_key_data(jnp.asarray(meta["key"], jnp.uint32))
  return Restored(found.step, state, root, meta["logs"], meta.get("pending"))
