"""The folder of a run: one config, one process at a time, one finished policy."""

from __future__ import annotations

import fcntl
import pathlib
import shutil
from collections.abc import Collection, Mapping
from typing import IO, Any

from tea_jax.models.policy import Policy
from tea_jax.models.weights import huggingface
from tea_jax.runs.checkpoints import CheckpointError, check_writable
from tea_jax.runs.config import RunConfig, check_resumable, load_config, save_config


class RunFolder:
  """`config.yaml, metrics.jsonl, checkpoints/, rollouts/, best_policy/, policy/` of one run.

  Opening it takes a lock that the operating system releases when the process dies.

  Raises:
    CheckpointError: if the folder cannot be written, or another process trains in it.
    ValueError: if it holds a run with another config.
  """

  def __init__(self, config: RunConfig):
    self.path = pathlib.Path(config.run_folder).absolute()
    check_writable(self.path)
    self._lock: IO[str] = open(self.path / ".lock", "w")  # noqa: SIM115 (held for the whole run)
    try:
      fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      self._lock.close()
      raise CheckpointError(
        f"another process is training in {self.path}; wait for it or choose another --run-folder."
      ) from error
    stored = self.path / "config.yaml"
    if stored.exists():
      check_resumable(load_config(stored), config)
    save_config(config, stored)

  @property
  def policy(self) -> pathlib.Path:
    """The finished policy, a Hugging Face folder."""
    return self.path / "policy"

  def save_best(self, policy: Policy, params: Mapping[str, Any], step: int) -> None:
    """Keeps the weights of the best validation so far."""
    folder = self.path / "best_policy" / str(step)
    huggingface.save_pretrained(folder, policy.config, params, policy.tokenizer)

  def forget_best(self, but: Collection[int]) -> None:
    """Deletes the weights of earlier bests, except those that a checkpoint may still go back to."""
    for folder in (self.path / "best_policy").glob("*"):
      if folder.name not in map(str, but):
        shutil.rmtree(folder, ignore_errors=True)

  def finish(self, policy: Policy, params: Mapping[str, Any], best_step: int | None) -> None:
    """Writes `policy/`: the weights of `best_step`, or `params` if that is None.

    Raises:
      CheckpointError: if the weights of `best_step` are gone.
    """
    if not self.policy.exists():
      best = self.path / "best_policy" / str(best_step)
      if best_step is None:
        huggingface.save_pretrained(self.policy, policy.config, params, policy.tokenizer)
      elif best.is_dir():
        best.rename(self.policy)
      else:
        raise CheckpointError(
          f"the selected policy, of step {best_step}, is neither in {self.policy} nor in {best}; "
          "put it back, or train again with another --run-folder."
        )
    shutil.rmtree(self.path / "best_policy", ignore_errors=True)

  def close(self) -> None:
    self._lock.close()
