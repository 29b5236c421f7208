"""Checkpoints of a run: everything that a step depends on, written whole or not at all.

The only file that knows orbax. A checkpoint is named by the *next* step to run. It holds two items:
`state`, the arrays (parameters, optimiser, tracked statistics), and `meta`, a JSON object (step,
root key, iterator, best so far, byte offsets of the logs, checksums of the arrays).
"""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import orbax.checkpoint as ocp

from tea_jax.runs.checksums import bit_sums, check_arrays, checksums, meta_checksum
from tea_jax.runtime import processes
from tea_jax.runtime.secrets import brief

# What a full disk must keep free beyond the state itself: metadata, logs, rounding.
_SPARE_BYTES = 16 * 2**20
_FULL = ("no space left", "resource_exhausted", "disk quota", "file too large")


class CheckpointError(RuntimeError):
  """A checkpoint could not be written or read; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """One restored checkpoint.

  Attributes:
    step: the next step to run.
    state: pytree of arrays, with the shardings of the abstract tree that was asked for.
    meta: the JSON object that was saved beside it.
  """

  step: int
  state: Any
  meta: dict[str, Any]


class CheckpointStore:
  """The checkpoints of one run folder.

  Args:
    folder: created if absent.
    keep: how many of the latest checkpoints stay.
    asynchronous: write in the background while training goes on; None does so on accelerators. A
      CPU's arrays are copied first: the next step writes into the buffers that are being saved.
    announce: called with each sentence the user should see.

  Raises:
    CheckpointError: if the folder cannot be written.
  """

  def __init__(
    self,
    folder: str | pathlib.Path,
    *,
    keep: int = 2,
    asynchronous: bool | None = None,
    announce: Callable[[str], None] = print,
  ):
    # Orbax reports every save on the root logger; a run has its own words for that.
    logging.getLogger("absl").setLevel(logging.ERROR)
    self.folder = pathlib.Path(folder).absolute()
    self._keep = keep
    on_cpu = jax.default_backend() == "cpu"
    self._asynchronous = not on_cpu if asynchronous is None else asynchronous
    self._copies = on_cpu and self._asynchronous
    self._announce = announce
    processes.on_first(check_writable, self.folder)
    self._manager = self._open()

  def _open(self) -> ocp.CheckpointManager:
    return ocp.CheckpointManager(
      self.folder,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=ocp.checkpoint_managers.LatestN(self._keep),
        enable_async_checkpointing=self._asynchronous,
        cleanup_tmp_directories=True,
      ),
    )

  @property
  def num_kept(self) -> int:
    """Latest saves that a run may go back to: one in the background may never end."""
    return self._keep + self._asynchronous

  def steps(self) -> list[int]:
    """Steps of the finished checkpoints, ascending."""
    return processes.agree(sorted(self._manager.all_steps()))

  def save(self, step: int, state: Any, meta: dict[str, Any]) -> None:
    """Writes a checkpoint; a kill at any instant leaves it whole or absent.

    In the background, one is whole at the latest when the next one is begun.

    Args:
      step: the next step to run.
      state: pytree of arrays.
      meta: JSON object.

    Raises:
      CheckpointError: disk full, folder read-only, or the write failed.
    """
    if step in self.steps():
      return
    processes.on_first(self._check_space, num_bytes(state))
    meta = {**meta, "step": step, "checksums": checksums(state)}
    if not meta["checksums"]:
      meta["bit_sums"] = bit_sums(state)
    meta["meta_checksum"] = meta_checksum(meta)
    if self._copies:
      state = jax.tree.map(lambda leaf: leaf.copy(), state)
    try:
      with processes.together():
        self._manager.save(
          step,
          args=ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            meta=ocp.args.JsonSave(meta),
          ),
        )
        self._manager.check_for_errors()
    except Exception as error:
      raise CheckpointError(self._explain(step, error)) from error

  def restore_latest(
    self, abstract_state: Any, *, check: Callable[[dict[str, Any]], Any] | None = None
  ) -> Checkpoint | None:
    """The newest checkpoint that is whole, or None if there is none.

    A checkpoint that cannot be read, or whose arrays differ from their checksums, is announced, and
    the one before is taken; it is set aside (as `<step>.corrupt`) once that one has been read.

    Args:
      abstract_state: pytree of `jax.ShapeDtypeStruct` (with shardings where there are devices).
      check: raises for a JSON object that is damaged; such a checkpoint cannot be read.

    Raises:
      CheckpointError: if there are checkpoints, but none of them can be read, or memory or the disk
        fail while reading. Nothing is moved then.
    """
    steps, unreadable = self.steps(), []
    for step in reversed(steps):
      try:
        with processes.together():
          restored = self._restore(step, abstract_state, check)
        with processes.together():
          check_arrays(restored.state, restored.meta)
        for bad in unreadable:
          self._set_aside(bad)
        return restored
      except Exception as error:
        reason = brief(error)
        if _is_passing(error):
          raise CheckpointError(
            f"Checkpoint {step} in {self.folder} could not be read now ({type(error).__name__}: "
            f"{reason}); it was left as it is. See to the cause and run the same command again."
          ) from error
        self._announce(
          f"Checkpoint {step} in {self.folder} cannot be read ({type(error).__name__}: {reason}); "
          "falling back to the one before."
        )
        unreadable.append(step)
    if steps:
      raise CheckpointError(
        f"None of the {len(steps)} checkpoints in {self.folder} can be read; they were left as "
        "they are. Start a new run in another folder, or restore them from a copy."
      )
    return None

  def _restore(
    self, step: int, abstract_state: Any, check: Callable[[dict[str, Any]], Any] | None
  ) -> Checkpoint:
    restored = self._manager.restore(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardRestore(abstract_state),
        meta=ocp.args.JsonRestore(),
      ),
    )
    meta = dict(restored["meta"])
    if meta.get("meta_checksum", meta_checksum(meta)) != meta_checksum(meta):
      raise ValueError("its JSON differs from its checksum")
    if meta["step"] != step:
      raise ValueError(f"it is the checkpoint of step {meta['step']} under another name")
    if check is not None:
      check(meta)
    return Checkpoint(step, restored["state"], meta)

  def wait(self) -> None:
    """Returns when everything is on disk.

    Raises:
      CheckpointError: if a write in the background failed.
    """
    try:
      with processes.together():
        self._manager.wait_until_finished()
        self._manager.check_for_errors()
    except Exception as error:
      raise CheckpointError(self._explain(None, error)) from error

  def close(self) -> None:
    self.wait()
    self._manager.close()

  def _set_aside(self, step: int) -> None:
    self._manager.close()
    processes.on_first(self._move_aside, step)
    self._manager = self._open()

  def _move_aside(self, step: int) -> None:
    # Outside the folder that orbax scans, so that no later start trips over it.
    aside = self.folder.parent / "corrupt_checkpoints"
    aside.mkdir(exist_ok=True)
    target = aside / f"{step}.corrupt"
    shutil.rmtree(target, ignore_errors=True)
    (self.folder / str(step)).rename(target)

  def _check_space(self, num_bytes: int) -> None:
    needed = num_bytes + _SPARE_BYTES
    free = shutil.disk_usage(self.folder).free
    if free < needed:
      raise CheckpointError(
        f"The disk of {self.folder} has {free / 1e9:.2f} GB free, but a checkpoint takes "
        f"{needed / 1e9:.2f} GB; free some space and run the same command again"
        f"{self._last_good()}."
      )

  def _last_good(self) -> str:
    steps = sorted(self._manager.all_steps())
    return f": it goes on from step {steps[-1]}" if steps else ""

  def _explain(self, step: int | None, error: Exception) -> str:
    what = "A checkpoint" if step is None else f"Checkpoint {step}"
    text = " ".join(str(error).split())
    number = getattr(error, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT) or any(word in text.lower() for word in _FULL):
      reason = "the disk is full; free some space"
    elif number in (errno.EROFS, errno.EACCES, errno.EPERM):
      reason = "the folder is read-only; make it writable"
    else:
      reason = f"{type(error).__name__}: {text[:300]}; see to it"
    return (
      f"{what} could not be written to {self.folder}: {reason} and run the same command again"
      f"{self._last_good()}."
    )


def _is_passing(error: Exception) -> bool:
  """Whether an error says something about the machine rather than about the files."""
  if isinstance(error, MemoryError) or "resource_exhausted" in str(error).lower():
    return True
  return isinstance(error, OSError) and not isinstance(error, (FileNotFoundError, EOFError))


def check_writable(folder: pathlib.Path) -> None:
  """Makes the folder and writes one byte into it.

  Raises:
    CheckpointError: naming the folder and the reason.
  """
  try:
    folder.mkdir(parents=True, exist_ok=True)
    # A new file under a new name: it follows no link that lies there.
    handle, probe = tempfile.mkstemp(prefix=".write_probe", dir=folder)
    try:
      os.write(handle, b"1")
    finally:
      os.close(handle)
      os.unlink(probe)
  except OSError as error:
    reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
    raise CheckpointError(
      f"The folder {folder} cannot be written ({reason}); choose another with --run-folder."
    ) from error


def num_bytes(tree: Any) -> int:
  """Bytes of all arrays of a tree."""
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
