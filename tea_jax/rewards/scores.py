"""What a reward function returned, as float64 scores: numbers only, one a row, never guessed."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Mapping, Set
from typing import Any

import numpy as np

_FLOAT32_MAX = float(np.finfo(np.float32).max)  # advantages are computed in float32
_TEXTS = (str, bytes, bytearray, memoryview)


class ScoreError(ValueError):
  """A value that is no score; the message goes on after "reward 'name' returned".

  Attributes:
    row: of the value, or None if it is the whole result.
    advice: end of the sentence.
    shows_first: whether the first completion helps the reader.
  """

  def __init__(
    self, message: str, *, row: int | None = None, advice: str = "", shows_first: bool = False
  ):
    super().__init__(message)
    self.row = row
    self.advice = advice
    self.shows_first = shows_first


def sequence_items(values: Any) -> list[Any] | None:
  """The items of an ordered collection of numbers; None for anything else.

  Iterating may run the user's code, so what it raises is the user's error.
  """
  if isinstance(values, (*_TEXTS, Mapping, Set)) or not hasattr(values, "__len__"):
    if inspect.iscoroutine(values):
      values.close()
    return None
  if np.ma.isMaskedArray(values):
    mask = np.ma.getmaskarray(values)
    return [None if np.all(hidden) else item for item, hidden in zip(np.ma.getdata(values), mask)]
  return list(values)


def checked_scores(items: list[Any] | None, values: Any, count: int) -> np.ndarray:
  """`[count]` float64; NaN where an item is None.

  Args:
    items: `sequence_items(values)`.
    values: what the function returned.
    count: rows of the call.

  Raises:
    ScoreError: not an ordered collection of `count` finite real numbers of float32's range.
  """
  expected = f"a sequence of {count} numbers was expected, one for each completion"
  if items is None:
    kind = type(values).__name__
    if inspect.iscoroutine(values) or isinstance(values, asyncio.Future):
      raise ScoreError(
        f"a {kind}: it is async, which is not supported, and {expected}",
        advice="; run the event loop inside the function, for instance by asyncio.run",
      )
    raise ScoreError(f"{kind}, but {expected}")
  if len(items) != count or len(values) != count:
    raise ScoreError(
      f"{len(items)} scores for {count} completions",
      advice="; it must return one score for each",
      shows_first=True,
    )
  scores = np.full((count,), np.nan)
  for row, item in enumerate(items):
    if item is not None and item is not np.ma.masked:
      scores[row] = _number(item, row)
  return scores


def _number(item: Any, row: int) -> float:
  refused = ScoreError(f"{_shown(item)}, which is not a number,", row=row)
  kind = getattr(getattr(item, "dtype", None), "kind", "")
  if isinstance(item, (*_TEXTS, Mapping, Set, complex)) or kind in ("c", "U", "S"):
    raise refused
  if getattr(item, "ndim", 0) != 0:  # a row of one number is no number
    raise refused
  try:
    value = float(item)
  except OverflowError as error:
    raise ScoreError("a number beyond the range of floats", row=row) from error
  except Exception as error:
    raise refused from error
  if not np.isfinite(value):
    advice = "; return None for a completion that should not be scored"
    raise ScoreError(f"{value}", row=row, advice=advice)
  if abs(value) > _FLOAT32_MAX:
    advice = "; rewards are used in float32, so scale them"
    raise ScoreError(f"{value}, which is beyond float32,", row=row, advice=advice)
  return value


def _shown(item: Any) -> str:
  try:
    text = repr(item)
  except Exception:
    text = type(item).__name__
  return text if len(text) <= 80 else text[:77] + "..."
