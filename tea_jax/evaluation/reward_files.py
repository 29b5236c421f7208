"""Rewards of other engines: a JSONL or Parquet file, a rollout a line, as records."""

from __future__ import annotations

import json
import math
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tea_jax.evaluation.records import Records, Samples

_TEXTS = ("completion", "text", "response", "output")
_SUFFIXES = (".jsonl", ".parquet")


def is_reward_file(path: str | os.PathLike[str]) -> bool:
  """Whether a path names a JSONL or Parquet file that is there."""
  return pathlib.Path(path).suffix in _SUFFIXES and pathlib.Path(path).is_file()


def read_reward_file(
  path: str | os.PathLike[str],
  *,
  prompt_column: str = "prompt",
  reward_column: str = "reward",
  text_column: str = "",
) -> Records:
  """Groups the lines of a file by prompt, prompts and rollouts in the order of the file.

  All prompts are cut to the number of lines of the shortest, since best-of-N is compared at one n.

  Args:
    path: `.jsonl` or `.parquet`.
    prompt_column: text or number of the prompt.
    reward_column: number, or null for "not scored".
    text_column: the completion; by default the first of completion, text, response, output that is
      there. Files without any have empty completions.

  Returns:
    `Records`; lengths are those of a `length` column, or 0.

  Raises:
    ValueError: naming file, line and column of what is missing or no finite number.
  """
  file = pathlib.Path(path)
  if file.suffix not in _SUFFIXES:
    raise ValueError(f"{file} is neither .jsonl nor .parquet; convert it to one of them")
  if not file.is_file():
    raise ValueError(f"{file} does not exist")
  groups: dict[str, list[tuple[float, str, int, bool]]] = {}
  for number, row in enumerate(_rows(file), start=1):
    where = f"{file}, line {number}"
    for column in (prompt_column, reward_column, *([text_column] if text_column else [])):
      if column not in row:
        raise ValueError(f"{where} has no column {column!r}; it has {', '.join(map(str, row))}")
    text = next((row[name] for name in (text_column, *_TEXTS) if name in row), "")
    prompt = row[prompt_column]
    key = prompt if isinstance(prompt, str) else json.dumps(prompt, default=str)
    groups.setdefault(key, []).append(
      (
        _reward(row[reward_column], where),
        "" if text is None else str(text),
        int(row.get("length") or 0),
        bool(row.get("finished", True)),
      )
    )
  if not groups:
    raise ValueError(f"{file} holds no lines; one a rollout is needed")
  size = min(len(rows) for rows in groups.values())
  kept = [rows[:size] for rows in groups.values()]
  lengths, finished = ([[row[i] for row in rows] for rows in kept] for i in (2, 3))
  return Records(
    prompts=list(groups),
    prompt_ids=np.arange(len(groups)),
    samples=Samples(
      [[row[1] for row in rows] for rows in kept], np.array(lengths), np.array(finished)
    ),
    rewards=np.array([[row[0] for row in rows] for rows in kept]),
    spec={"source": file.name},
  )


def _rows(file: pathlib.Path) -> Iterator[Mapping[str, Any]]:
  if file.suffix == ".parquet":
    import pyarrow.parquet as pq

    yield from pq.read_table(file).to_pylist()
    return
  with file.open() as lines:
    for number, line in enumerate(lines, start=1):
      if not line.strip():
        continue
      try:
        row = json.loads(line)
      except ValueError as error:
        raise ValueError(f"{file}, line {number} is not JSON: {error}") from error
      if not isinstance(row, dict):
        raise ValueError(f"{file}, line {number} is not a JSON object but {type(row).__name__}")
      yield row


def _reward(value: Any, where: str) -> float:
  if value is None:
    return math.nan
  if isinstance(value, str) or not math.isfinite(float(value)):
    raise ValueError(f"{where} has the reward {value!r}; a finite number or null is needed")
  return float(value)
