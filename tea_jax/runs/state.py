"""The state of a run between two steps, and its way into a checkpoint and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tea_jax.runs.checkpoints import CheckpointStore
from tea_jax.runtime import processes
from tea_jax.runtime.keys import THREEFRY


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
    kl_control: of the KL coefficient, JSON; see `KLControl`.
  """

  trainable: Any
  optimizer: Any
  tracked: Any
  iterator: Mapping[str, int]
  best: Best | None = None
  skipped: int = 0
  kl_control: Sequence[float] = ()

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
  identity: Mapping[str, str] | None = None,
) -> None:
  """Writes the state before `step`.

  Args:
    store: of the run.
    step: the next step.
    state, root, log_offsets, pending: see `Restored`.
    prompts: checksum of the run's prompts.
    identity: digests of what a run must go on with, by what they are of.
  """
  meta = {
    "key": np.asarray(jax.random.key_data(root)).tolist(),
    "iterator": dict(state.iterator),
    "best": None if state.best is None else dataclasses.asdict(state.best),
    "skipped": state.skipped,
    "kl_control": list(state.kl_control),
    "logs": dict(log_offsets),
    "prompts": prompts,
    "pending": pending,
    "identity": dict(identity or {}),
  }
  store.save(step, state.arrays, meta)


def restore_state(
  store: CheckpointStore,
  fresh: State,
  root: jax.Array,
  *,
  prompts: int,
  identity: Mapping[str, str] | None = None,
  accept_changes: bool = False,
) -> Restored:
  """The last checkpoint that is whole, or the fresh state if there is none.

  The fresh optimiser state is freed before a checkpoint is read, so that there is room for it.

  Raises:
    ValueError: if the run was started with other prompts, or another identity (see `save_state`)
      unless `accept_changes`.
  """
  abstract = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), fresh.arrays
  )
  if store.steps():
    jax.tree.map(lambda leaf: leaf.delete(), fresh.optimizer)
  found = store.restore_latest(abstract, check=_from_meta)
  if found is None:
    # Committed to their devices, as restored arrays are: else the first resume compiles again.
    placed = jax.device_put(fresh.arrays, jax.tree.map(lambda leaf: leaf.sharding, abstract))
    return Restored(0, fresh._replace(**placed), root)
  meta = found.meta
  with processes.together():
    _check_unchanged(meta, prompts, identity or {}, accept_changes)
  iterator, best, skipped, _ = _from_meta(meta)
  state = State(**found.state, iterator=iterator, best=best, skipped=skipped)._replace(
    kl_control=_kl_control(meta)
  )
  root = jax.random.wrap_key_data(jnp.asarray(meta["key"], jnp.uint32), impl=THREEFRY)
  return Restored(found.step, state, root, meta["logs"], meta.get("pending"))


def _check_unchanged(
  meta: Mapping[str, Any], prompts: int, identity: Mapping[str, str], accept_changes: bool
) -> None:
  if meta.get("prompts", prompts) != prompts:
    raise ValueError(
      "the prompts of this run are other ones than at its start (another file, template or "
      "tokenizer); go on with the same, or choose another --run-folder."
    )
  began = meta.get("identity") or {}
  changed = [what for what, digest in identity.items() if began.get(what, digest) != digest]
  if changed and not accept_changes:
    raise ValueError(
      f"this run began with another {', another '.join(changed)}; go on with the same, choose "
      "another --run-folder, or accept the change with --checkpoint.accept-changes."
    )


def _from_meta(meta: Mapping[str, Any]) -> tuple[dict[str, int], Best | None, int, dict[str, int]]:
  """Iterator, best, skipped updates and log offsets of a checkpoint's JSON, checked.

  Raises:
    ValueError: for what no checkpoint holds.
  """
  key, iterator, best, logs = (meta[name] for name in ("key", "iterator", "best", "logs"))
  _check_counts("key", dict(enumerate(key)))
  _check_counts("iterator", iterator)
  _check_counts("logs", logs)
  _check_counts("skipped", {"skipped": meta["skipped"]})
  _kl_control(meta)
  if best is not None:
    _check_counts("best", {"step": best["step"]})
    best = Best(step=best["step"], score=float(best["score"]))
  return dict(iterator), best, meta["skipped"], dict(logs)


def _kl_control(meta: Mapping[str, Any]) -> tuple[float, ...]:
  """State of the KL controller; empty in checkpoints from before there was one."""
  values = meta.get("kl_control", [])
  if not isinstance(values, list) or not all(isinstance(v, int | float) for v in values):
    raise ValueError(f"its kl_control is damaged: {values!r:.80}")
  return tuple(map(float, values))


def _check_counts(what: str, values: Any) -> None:
  counts = isinstance(values, Mapping) and all(
    isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in values.values()
  )
  if not counts:
    raise ValueError(f"its {what} is damaged: {values!r:.80}")
