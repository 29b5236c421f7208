"""The folder of a run: one config, one process at a time, one finished policy."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pathlib
import shutil
import stat
import warnings
from collections.abc import Collection, Mapping
from typing import Any

from tea_jax.models.lora import LoraConfig
from tea_jax.models.policy import Policy
from tea_jax.models.weights import huggingface, peft
from tea_jax.runs.checkpoints import CheckpointError, check_writable
from tea_jax.runs.config import RunConfig, check_resumable, read_config, save_config
from tea_jax.runs.supervised import SupervisedConfig
from tea_jax.runtime import processes
from tea_jax.runtime.files import file_checksums, read_json, write_text

_FINISHED = "finished.json"


class RunFolder:
  """`config.yaml, metrics.jsonl, checkpoints/, rollouts/, best_policy/, policy/` of one run.

  A run that trains adapters leaves them in `adapter/` too, in PEFT's format.

  Opening it takes a lock that the operating system releases when the process dies. Where a run has
  several processes, the first one does all this, and what it finds is told to all.

  Raises:
    CheckpointError: if the folder cannot be written, or another process trains in it.
    ValueError: if it holds a run with another config that has begun.
  """

  def __init__(self, config: RunConfig | SupervisedConfig):
    self.path = pathlib.Path(config.run_folder).absolute()
    self._every = config.checkpoint.every
    self._dtype = config.checkpoint.policy_dtype
    self._lock: int | None = None
    processes.on_first(self._claim, config)

  def _claim(self, config: RunConfig | SupervisedConfig) -> None:
    check_writable(self.path)
    self._lock = _lock(self.path)
    try:
      stored = self.path / "config.yaml"
      # A first start that failed before its first step does not bind the next one.
      if stored.exists() and self.begun:
        check_resumable(read_config(type(config), stored), config)
      save_config(config, stored)
    except BaseException:
      self.close()
      raise

  @property
  def policy(self) -> pathlib.Path:
    """The finished policy, a Hugging Face folder."""
    return self.path / "policy"

  @property
  def begun(self) -> bool:
    """Whether a step was done."""
    checkpoints = (self.path / "checkpoints").glob("[0-9]*")
    return self._steps_logged() > 0 or self.policy.exists() or any(checkpoints)

  def check_restart(self) -> None:
    """Refuses to begin anew where a run went on beyond a checkpoint that is gone.

    Raises:
      CheckpointError: saying what there is.
    """
    processes.on_first(self._check_restart)

  def _check_restart(self) -> None:
    logged = self._steps_logged()
    if _is_model(self.policy) or (self._every and logged > self._every):
      raise CheckpointError(
        f"{self.path} holds a run of {logged} steps, but no checkpoint; beginning anew would empty "
        "its metrics. Put its checkpoints/ back, delete the folder, or choose another --run-folder."
      )

  def save_best(self, policy: Policy, params: Mapping[str, Any], step: int) -> None:
    """Keeps the weights of the best validation so far, and checksums of their files."""
    best = self.path / "best_policy" / str(step)
    policy.save_pretrained(best, dict(params), dtype=self._dtype)
    processes.on_first(self._note_files, best)

  def _note_files(self, best: pathlib.Path) -> None:
    write_text(_checksum_file(best), json.dumps(file_checksums(best)) + "\n")

  def save_adapter(
    self, policy: Policy, adapters: Any, lora: LoraConfig, step: int | None = None
  ) -> None:
    """Keeps the adapters of a run that trains them, in PEFT's format.

    Args:
      policy: whose projections are adapted.
      adapters, lora: as they are trained.
      step: of the best validation so far; None for `adapter/` itself.
    """
    folder = self.path / "adapter" if step is None else self.path / "best_adapter" / str(step)
    processes.on_first(peft.save_adapters, folder, policy.config, adapters, lora)

  def forget_best(self, but: Collection[int]) -> None:
    """Deletes the weights of earlier bests, except those that a checkpoint may still go back to."""
    processes.on_first(self._forget_best, but)

  def _forget_best(self, but: Collection[int]) -> None:
    for folder in (*self.path.glob("best_policy/*"), *self.path.glob("best_adapter/*")):
      if folder.is_dir() and folder.name not in map(str, but):
        shutil.rmtree(folder, ignore_errors=True)
        _checksum_file(folder).unlink(missing_ok=True)

  def finish(self, policy: Policy, params: Mapping[str, Any], best_step: int | None) -> None:
    """Writes `policy/`: the weights of `best_step`, or `params` if that is None.

    What was there of an earlier end of the run is replaced; nothing is deleted before the new
    folder stands.

    Raises:
      CheckpointError: if the weights of `best_step` are gone or damaged, or `policy/` holds
        anything else.
    """
    if best_step is None:
      policy.save_pretrained(self.policy, dict(params), dtype=self._dtype)
    processes.on_first(self._settle, best_step)

  def _settle(self, best_step: int | None) -> None:
    """Puts the selected policy in place, and removes what only a run that goes on needs."""
    if best_step is not None:
      self._finish_with(self.path / "best_policy" / str(best_step), best_step)
      adapter = self.path / "best_adapter" / str(best_step)
      if adapter.is_dir():
        shutil.copytree(adapter, self.path / "adapter", dirs_exist_ok=True)
    self._note_finished(best_step)
    for name in ("best_policy", "best_adapter"):
      shutil.rmtree(self.path / name, ignore_errors=True)

  def _finish_with(self, best: pathlib.Path, step: int) -> None:
    if _is_model(best):
      foreign = huggingface.foreign_entries(self.policy)
      if foreign:
        raise CheckpointError(
          f"{self.policy} holds {foreign[0]!r}, which is not part of a model folder; the selected "
          f"policy stays in {best}. Move it away and run the same command again."
        )
      _check_files(best, step)
      # The intent first: if this is stopped behind the move, the next start knows what it finds.
      self._note_finished(step)
      old = self.path / ".policy.old"
      shutil.rmtree(old, ignore_errors=True)
      if self.policy.exists():
        self.policy.rename(old)
      best.rename(self.policy)
      shutil.rmtree(old, ignore_errors=True)
      return
    told = self.path / _FINISHED
    known = read_json(told).get("policy_step") if told.exists() else step
    if not _is_model(self.policy) or known != step:
      raise CheckpointError(
        f"the selected policy, of step {step}, is neither in {self.policy} nor in {best}; "
        "put it back, or train again with another --run-folder."
      )

  def _note_finished(self, step: int | None) -> None:
    write_text(self.path / _FINISHED, json.dumps({"policy_step": step}) + "\n")

  def close(self) -> None:
    if self._lock is not None:
      os.close(self._lock)
      self._lock = None

  def _steps_logged(self) -> int:
    try:
      return (self.path / "metrics.jsonl").read_bytes().count(b"\n")
    except OSError:
      return 0


def _checksum_file(folder: pathlib.Path) -> pathlib.Path:
  return folder.with_name(f"{folder.name}.json")


def _check_files(best: pathlib.Path, step: int) -> None:
  """Raises CheckpointError where a file differs from what was saved."""
  told = _checksum_file(best)
  expected, found = read_json(told) if told.exists() else {}, file_checksums(best)
  damaged = [name for name, checksum in expected.items() if found.get(name) != checksum]
  if damaged:
    raise CheckpointError(
      f"{best / damaged[0]}, of the selected policy of step {step}, is not what was saved; put it "
      "back, or train again with another --run-folder."
    )


def _is_model(folder: pathlib.Path) -> bool:
  return (folder / "config.json").is_file() and any(folder.glob("model*.safetensors"))


def _lock(folder: pathlib.Path) -> int:
  """An exclusive lock on `.lock`, which must be a plain file; its descriptor."""
  path = folder / ".lock"
  flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
  try:
    lock = os.open(path, flags, 0o600)
  except OSError as error:
    raise CheckpointError(
      f"{path} cannot be opened ({os.strerror(error.errno or 0)}); if it is a link, delete it."
    ) from error
  if not stat.S_ISREG(os.fstat(lock).st_mode):
    os.close(lock)
    raise CheckpointError(f"{path} is no plain file; delete it.")
  try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as error:
    if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES):
      os.close(lock)
      raise CheckpointError(
        f"another process is training in {folder}; wait for it or choose another --run-folder."
      ) from error
    warnings.warn(
      f"the file system of {folder} has no locks ({os.strerror(error.errno or 0)}): do not train "
      "in this folder from two processes.",
      stacklevel=3,
    )
  return lock
