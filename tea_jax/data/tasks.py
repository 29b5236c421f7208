"""Verifiable tasks that need no download: prompts of the package reasoning-gym, by a short name.

`reasoning_gym:chain_sum?min_terms=2&max_terms=3&size=2000&seed=0` names a task, its options, how
many entries are drawn and their seed. The columns `answer`, `task` and `metadata` travel to the
reward `reasoning_gym`, which asks the task's own verifier.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import parse_qsl

from tea_jax.runtime.extras import extra

PREFIX = "reasoning_gym:"
_SIZE = 2000


def parse_task(source: str) -> tuple[str, dict[str, Any]]:
  """`(task, options)` of `reasoning_gym:task?option=value&...`; values are read as JSON.

  Raises:
    ValueError: if there is no task name, or an option has no value.
  """
  name, _, query = source.removeprefix(PREFIX).partition("?")
  if not name:
    raise ValueError(f"'{source}' names no task; write {PREFIX}chain_sum?min_terms=2&max_terms=3")
  try:
    pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
  except ValueError as error:
    raise ValueError(f"the options of '{source}' are not option=value&option=value") from error
  return name, {key: _value(value) for key, value in pairs}


def make_task(name: str, options: Mapping[str, Any]) -> Any:
  """The task's data set of the package.

  Raises:
    ImportError: if the package is not installed.
    ValueError: for an unknown task, or options that it does not have.
  """
  with extra("tasks", f"the task '{name}'"):
    import reasoning_gym
    from reasoning_gym.factory import DATASETS
  if name not in DATASETS:
    close = [task for task in sorted(DATASETS) if name[:4] in task] or sorted(DATASETS)
    raise ValueError(f"unknown task '{name}'; there are {', '.join(close[:12])} and others")
  try:
    return reasoning_gym.create_dataset(name, **options)
  except (TypeError, ValueError, AssertionError) as error:
    raise ValueError(f"task '{name}' refuses the options {dict(options)}: {error}") from error


def read_task(source: str) -> Iterator[dict[str, Any]]:
  """Rows of a task: prompt, answer, task and metadata (both for the verifier)."""
  name, options = parse_task(source)
  size, seed = options.pop("size", _SIZE), options.pop("seed", 0)
  if not isinstance(size, int) or size < 1:
    raise ValueError(f"size={size!r} of '{source}' must be a positive number of entries")
  for entry in make_task(name, {**options, "size": size, "seed": seed}):
    yield {
      "prompt": entry["question"],
      "answer": str(entry["answer"]),
      "task": f"{name}?{json.dumps(options, sort_keys=True)}",
      "metadata": json.dumps(entry["metadata"], sort_keys=True, default=str),
    }


def _value(text: str) -> Any:
  try:
    return json.loads(text)
  except ValueError:
    return text
