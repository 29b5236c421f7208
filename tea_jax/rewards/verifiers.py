"""Rewards that check a completion against a rule: boxed answers, patterns, length.

They are 0/1 by default (length: between 0 and 1). `None` ("not scored") is returned only where the
data, not the completion, is unusable: a reference answer that cannot be read.
"""

from __future__ import annotations

import importlib.util
import os
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from tea_jax.rewards.base import RewardFunction, row_wise
from tea_jax.rewards.text_checks import TextCheck
from tea_jax.rewards.worker_pool import WorkerPool
from tea_jax.runtime.extras import extra

_BOX = re.compile(r"\\(?:boxed|fbox)\s*")
_TOKEN = re.compile(r"\S+")
_BRACE = re.compile(r"(?<!\\)[{}]")


def extract_boxed(text: str) -> str | None:
  r"""Contents of the last complete `\boxed{...}` (or `\fbox{...}`) in `text`, or None.

  Braces nest; `\{` and `\}` do not count. An empty box counts only if there is no other. Without
  any, `\boxed 7` gives one token, `7`. Time is linear in the length of the text.
  """
  closing = _matching_braces(text)
  starts = [match.end() for match in _BOX.finditer(text)]
  braced = [start for start in starts if start in closing]
  for start in reversed(braced):
    if answer := text[start + 1 : closing[start]].strip():
      return answer
  # A word behind a bare \\boxed counts only where nothing was boxed: texts talk of the notation.
  bare = [start for start in starts if start < len(text) and text[start] != "{"]
  token = _TOKEN.match(text, bare[-1]) if bare and not braced else None
  if token is not None:
    return token[0].rstrip("$.")
  return "" if braced else None


def _matching_braces(text: str) -> dict[int, int]:
  """Opening brace -> the brace that closes it, in one pass."""
  closing, opened = {}, []
  for match in _BRACE.finditer(text):
    if match[0] == "{":
      opened.append(match.start())
    elif match[0] == "}" and opened:
      closing[opened.pop()] = match.start()
  return closing


def answer_reader(pattern: str = "") -> Callable[[str], str | None]:
  r"""What reads the answer that votes out of a completion; it gives None where there is none.

  Args:
    pattern: regular expression whose last match is the answer: its first group, or all of it where
      it has none; stripped. Empty for `\boxed{...}`. A text in which a second does not suffice to
      find it has no answer.

  Raises:
    ValueError: if the pattern is not a regular expression.
  """
  if not pattern:
    return extract_boxed
  last = TextCheck("last", pattern, flags=compile_pattern(pattern).flags)
  return lambda text: last([text])[0]


def compile_pattern(pattern: str, flags: int = 0) -> re.Pattern[str]:
  """`re.compile` whose error says which pattern."""
  try:
    return re.compile(pattern, flags)
  except re.error as error:
    raise ValueError(f"pattern {pattern!r} is not a regular expression: {error}") from error


class BoxedMathReward:
  r"""1 when the completion's last `\boxed{...}` equals the reference answer, by math-verify.

  Equal strings are settled at once; everything else goes to a pool of processes, because sympy may
  hang: a task that exceeds the time-out counts as wrong and its process is replaced.

  The references are a data-set column, e.g. `answer` of the GSM8K and MATH recipes; a row whose
  reference cannot be read is not scored, with one warning.
  """

  name = "boxed_math"
  row_wise = True

  def __init__(
    self,
    *,
    answer_column: str = "answer",
    timeout: float = 5.0,
    num_workers: int = 2,
    correct: float = 1.0,
    incorrect: float = 0.0,
  ):
    """Args:
    answer_column: name of the column of reference answers (LaTeX or plain).
    timeout: seconds for one comparison.
    num_workers: processes that compare.
    correct, incorrect: the two scores.
    """
    with extra("rewards", "comparing boxed answers"):
      if importlib.util.find_spec("math_verify") is None:  # importing it takes a second
        raise ModuleNotFoundError(name="math_verify")
    self.answer_column = answer_column
    self.correct = correct
    self.incorrect = incorrect
    self.num_timeouts = 0
    self._timeout = timeout
    worker = os.path.join(os.path.dirname(os.path.abspath(__file__)), "math_worker.py")
    # math-verify's own alarm fires first (parse twice, verify once) and keeps the process.
    self._pool = WorkerPool(worker, num_workers=num_workers, timeout=3 * max(1.0, timeout) + 1)

  def __call__(
    self, prompts: Sequence[str], completions: Sequence[str], **columns: Any
  ) -> list[float | None]:
    if self.answer_column not in columns:
      raise ValueError(
        f"boxed_math needs the column '{self.answer_column}' with the reference answers; "
        f"the data has {sorted(set(columns) - {'context'}) or 'no columns'}"
      )
    scores: list[float | None] = [self.incorrect] * len(completions)
    tasks: dict[tuple[str, str], list[int]] = {}
    for row, (completion, reference) in enumerate(zip(completions, columns[self.answer_column])):
      if reference is None:
        scores[row] = None  # nothing to compare with
        continue
      answer = extract_boxed(completion)
      if answer is None:
        continue
      reference = str(reference)
      if _squeeze(answer) == _squeeze(extract_boxed(reference) or reference):
        scores[row] = self.correct
      else:
        tasks.setdefault((reference, answer), []).append(row)
    unreadable = set()
    for (reference, _), rows, reply in zip(tasks, tasks.values(), self._compare(list(tasks))):
      score: float | None = self.incorrect
      if reply.get("correct"):
        score = self.correct
      elif reply.get("unreadable"):
        score = None
        unreadable.add(reference)
      self.num_timeouts += bool(reply.get("timeout"))
      for row in rows:
        scores[row] = score
    if unreadable:
      warnings.warn(
        f"{len(unreadable)} reference answers cannot be parsed and their rows are not scored; "
        f"the first is {sorted(unreadable)[0]!r}",
        stacklevel=2,
      )
    return scores

  @property
  def required_columns(self) -> tuple[str, ...]:
    """Columns that the data must have."""
    return (self.answer_column,)

  def close(self) -> None:
    """Stops the worker processes."""
    self._pool.close()

  def _compare(self, pairs: list[tuple[str, str]]) -> list[dict[str, Any]]:
    return self._pool.map(
      [
        {"reference": _boxed(reference), "completion": _boxed(answer), "timeout": self._timeout}
        for reference, answer in pairs
      ]
    )


def regex_reward(
  pattern: str,
  *,
  full: bool = False,
  ignore_case: bool = False,
  match: float = 1.0,
  no_match: float = 0.0,
) -> RewardFunction:
  """`match` where the pattern is found in the completion (`full`: is the whole of it, stripped).

  Patterns with nested repeats can take exponential time in Python's engine; a completion for which
  a second does not suffice counts as no match.
  """
  compiled = compile_pattern(pattern, re.DOTALL | (re.IGNORECASE if ignore_case else 0))
  check = TextCheck("fullmatch" if full else "search", pattern, flags=compiled.flags)

  @row_wise
  def regex(prompts: Sequence[str], completions: Sequence[str]) -> np.ndarray:
    found = check([text.strip() if full else text for text in completions])
    return np.array([match if hit else no_match for hit in found], np.float64)

  return regex


def length_reward(
  minimum: int,
  maximum: int,
  *,
  margin: int = 0,
  unit: Literal["words", "characters"] = "words",
) -> RewardFunction:
  """1 inside [minimum, maximum], falling linearly to 0 over `margin` on either side.

  Args:
    minimum, maximum: allowed length in units, 0 <= minimum <= maximum.
    margin: units over which the score falls; 0 for a hard border.
    unit: count words or characters.
  """
  if not 0 <= minimum <= maximum:
    raise ValueError(f"lengths must satisfy 0 <= minimum <= maximum, got {minimum} and {maximum}")
  if margin < 0:
    raise ValueError(f"margin={margin} must not be negative")
  if unit not in ("words", "characters"):
    raise ValueError(f"unit={unit!r} must be 'words' or 'characters'")

  @row_wise
  def length(prompts: Sequence[str], completions: Sequence[str]) -> np.ndarray:
    sizes = np.array(
      [len(text.split() if unit == "words" else text) for text in completions], np.float64
    )
    excess = np.maximum(minimum - sizes, 0) + np.maximum(sizes - maximum, 0)
    if margin == 0:
      return (excess == 0).astype(np.float64)
    return np.maximum(0.0, 1.0 - excess / margin)

  return length


def _boxed(answer: str) -> str:
  return answer if extract_boxed(answer) is not None else f"$\\boxed{{{answer}}}$"


def _squeeze(answer: str) -> str:
  return "".join(answer.split())
