"""What a failed reward call leaves: its completions, with every score that was there already."""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from tea_jax.rewards.base import RewardError
from tea_jax.runtime.files import write_text


def write_failed_call(
  path: pathlib.Path, prompts: Sequence[str], completions: Sequence[str], error: RewardError
) -> None:
  """Writes a line of JSON a completion: prompt, completion, rewards by name.

  Rewards are those of the parts of a weighted reward that were scored before the failing one, and
  what the failing one returned if it has a value a completion; null where not scored, text where a
  value is not a finite number.

  Args:
    path: file that is written whole; its folder is made.
    prompts, completions: of the call, n each.
    error: of the call.
  """
  rewards: dict[str, Sequence[Any]] = dict(error.scored)
  values = error.values
  if isinstance(values, np.ndarray):
    values = list(values) if values.ndim else None
  if isinstance(values, list | tuple) and len(values) == len(completions):
    rewards[error.name] = values
  lines = []
  for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
    found = {name: _plain(scores[row]) for name, scores in rewards.items()}
    lines.append(json.dumps({"prompt": prompt, "completion": completion, "rewards": found}))
  path.parent.mkdir(parents=True, exist_ok=True)
  write_text(path, "".join(f"{line}\n" for line in lines))


def _plain(value: Any) -> float | str | None:
  if value is None or value is np.ma.masked:
    return None
  try:
    number = float(value)
  except Exception:  # the value may be what made the call fail
    try:
      return str(value)
    except Exception:
      return type(value).__name__
  return number if math.isfinite(number) else str(number)
