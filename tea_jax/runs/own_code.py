"""Whose code a stored config names: a run folder may come from somebody else."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence

from tea_jax.data.tasks import PREFIX
from tea_jax.runs.groups import DataConfig
from tea_jax.runs.reward import RewardConfig


def check_own_code(
  reward: RewardConfig, data: DataConfig, folder: pathlib.Path, *, said: Sequence[str] = ()
) -> None:
  """Refuses code that a run folder's config names, unless it is the user's own or was said.

  The user's own are `.py` files below the working directory that do not lie in the folder.

  Args:
    reward, data: of the folder's config.
    folder: the run folder.
    said: words of the command line; code that is named there may run.

  Raises:
    ValueError: naming the code and the flag that says it.
  """
  flags = [("--reward.functions", name) for name in reward.functions]
  for flag, name in [*flags, ("--data.prompts", data.prompts)]:
    if _is_code(name) and name not in said and not _is_own(name, folder):
      raise ValueError(
        f"{folder}/config.yaml names {name}, which is code that may come with the folder; to run "
        f"it, say {flag} {name} yourself"
      )


def _is_code(name: str) -> bool:
  module, separator, _ = name.rpartition(":")
  named = name.startswith(("http://", "https://", PREFIX))
  return bool(separator and module) and not named


def _is_own(name: str, folder: pathlib.Path) -> bool:
  file = pathlib.Path(name.rpartition(":")[0])
  if file.suffix != ".py" or not file.is_file() or file.stat().st_uid != os.getuid():
    return False
  here, there = file.resolve(), folder.resolve()
  return pathlib.Path.cwd() in here.parents and there not in here.parents
