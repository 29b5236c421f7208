"""Scores by several processes: each scores its share, or the first one all, and all know them."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from tea_jax.rewards import RewardError, RewardFunction
from tea_jax.runtime import processes

T = TypeVar("T")


def is_row_wise(reward: RewardFunction) -> bool:
  """Whether the reward says that a row's score depends on that row alone."""
  return bool(getattr(reward, "row_wise", False))


def in_shares(count: int, score: Callable[[int, int], T]) -> list[T] | None:
  """`score(first, stop)` of each process's share of so many neighbours, as even as they come.

  Args:
    count: of what is shared out.
    score: returns what JSON can hold, arrays included.

  Returns:
    The shares that hold any, in order; None with one process, and where a reward failed: who then
    scores all finds the error again, and says it of the whole.
  """
  if not processes.several():
    return None
  own = processes.index()
  first, stop = (count * part // processes.count() for part in (own, own + 1))
  found = None
  with contextlib.suppress(RewardError):
    found = [score(first, stop)] if first < stop else []
  shares = processes.exchange(found)
  return None if None in shares else [each for share in shares for each in share]


def shared_scores(
  reward: RewardFunction,
  count: int,
  score: Callable[[int, int], np.ndarray],
  whole: Callable[[], np.ndarray] | None = None,
) -> np.ndarray:
  """Scores by all processes of a `row_wise` reward, or by the first one, which tells the others.

  Args:
    reward: which of the two it is.
    count: of groups of rows.
    score: `(first, stop) -> [rows]` of these groups, through `call_reward`.
    whole: scores all groups, where more is to be done than `score(0, count)`.

  Returns:
    `[rows]` float64 of all groups.

  Raises:
    RewardError: in all processes.
  """
  shares = in_shares(count, score) if is_row_wise(reward) else None
  if shares is None:
    found = processes.on_first(whole or functools.partial(score, 0, count))
  else:
    found = [value for share in shares for value in share]
  return np.asarray(found, np.float64)
