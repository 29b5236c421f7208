"""Verifier of the package reasoning-gym as a reward: each task checks its own answers."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from tea_jax.rewards.verifiers import answer_reader, extract_boxed


class ReasoningGymReward:
  """1 where the task's verifier gives the answer full marks, else 0.

  The data are prompts of `reasoning_gym:task`, whose columns `task`, `answer` and `metadata` are
  read. The answer is what `answer_pattern` finds; by default what stands in `\\boxed{...}` or,
  without a box, the whole completion.
  """

  name = "reasoning_gym"
  row_wise = True

  def __init__(self, *, answer_pattern: str = "", partial: bool = False):
    """Args:
    answer_pattern: regular expression of the answer, see `answer_reader`.
    partial: keep the verifier's marks between 0 and 1 instead of only full ones.
    """
    self._read = answer_reader(answer_pattern) if answer_pattern else _boxed_or_all
    self._partial = partial

  def __call__(
    self,
    prompts: Sequence[str],
    completions: Sequence[str],
    task: Sequence[str] | None = None,
    answer: Sequence[str] | None = None,
    metadata: Sequence[str] | None = None,
  ) -> np.ndarray:
    if task is None or answer is None or metadata is None:
      raise ValueError(
        "the reward reasoning_gym needs the columns task, answer and metadata; use prompts of "
        "reasoning_gym:task, such as reasoning_gym:chain_sum?min_terms=2&max_terms=3"
      )
    scores = np.zeros(len(completions))
    for row, text in enumerate(completions):
      read = self._read(text)
      if read is not None:
        entry = {"answer": answer[row], "metadata": json.loads(metadata[row])}
        scores[row] = _verifier(task[row]).score_answer(read, entry)
    return scores if self._partial else (scores >= 1).astype(np.float64)


def _boxed_or_all(text: str) -> str | None:
  boxed = extract_boxed(text)
  return (text.strip() or None) if boxed is None else boxed


@functools.lru_cache(maxsize=32)
def _verifier(task: str) -> Any:
  import reasoning_gym

  name, _, options = task.partition("?")
  # Only its verifier is asked; one entry is the smallest that it can hold.
  return reasoning_gym.create_dataset(name, size=1, seed=0, **json.loads(options or "{}"))
