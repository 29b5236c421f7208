"""Sums of the chain_sum task: worked a step at a time, or bare for a small model made here.

`data.pairs = "tea_jax.studies.compute_aligned.sums:worked_sums"` with `target = "solution"`; the
answer that votes stands after `####`, see `ANSWER_PATTERN`. `sums:bare_sums` with `target =
"answer"` is what `sum_policy` reads.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from tea_jax.data.tasks import read_task
from tea_jax.models.policy import Policy
from tea_jax.runs.reward import RewardConfig
from tea_jax.studies.compute_aligned.letters import letter_policy

TASK = "reasoning_gym:chain_sum?min_terms=3&max_terms=3&min_digits=2&max_digits=2&size=4000"
# Two samples of five are right after a short warm-up: rewards can teach from there.
TWO_TERMS = "reasoning_gym:chain_sum?min_terms=2&max_terms=2&min_digits=2&max_digits=2&size=4000"
# From easy to hard: one or two digits, two or three terms.
MIXED_TERMS = "reasoning_gym:chain_sum?min_terms=2&max_terms=3&min_digits=1&max_digits=2&size=12000"
ANSWER_PATTERN = r"####\s*(-?\d+)"
ANSWER_REWARD = RewardConfig(functions=("reasoning_gym",), answer_pattern=r"^\s*(-?\d+)\s*$")
WORKED_REWARD = RewardConfig(
  functions=("reasoning_gym",),
  options=json.dumps({"reasoning_gym": {"answer_pattern": ANSWER_PATTERN}}),
  answer_pattern=ANSWER_PATTERN,
)


def worked_sums() -> Iterator[dict[str, Any]]:
  """Rows of the task, with a column `solution`."""
  for row in read_task(TASK):
    yield row | {"solution": work_out(_expression(row))}


def bare_sums() -> Iterator[dict[str, Any]]:
  """Rows of easy and hard sums without the task's words, `15 - 43 =`, for `sum_policy`."""
  for row in read_task(MIXED_TERMS):
    yield row | {"prompt": f"{_expression(row)} ="}


def sum_policy(*, seed: int = 0) -> Policy:
  """An untrained GPT-2 with a token for each letter of a worked sum, in float32."""
  return letter_policy("0123456789+-=;#", num_layers=2, max_positions=64, seed=seed)


def _expression(row: dict[str, Any]) -> str:
  return json.loads(row["metadata"])["expression"]


def work_out(expression: str) -> str:
  """Left to right, a line of working for every sign.

  Example:
    >>> work_out("15 - 43 + 75")
    ' 15 - 43 = -28; -28 + 75 = 47 #### 47'

  Raises:
    ValueError: if it is not numbers with plus and minus signs between them.
  """
  if not re.fullmatch(r"-?\d+( [+-] -?\d+)*", expression):
    raise ValueError(f"{expression!r} is not a sum of numbers with plus and minus signs")
  first, *rest = expression.split(" ")
  total, steps = int(first), []
  for sign, number in zip(rest[::2], rest[1::2], strict=True):
    following = total + int(number) if sign == "+" else total - int(number)
    steps.append(f"{total} {sign} {number} = {following}")
    total = following
  return f" {'; '.join(steps)} #### {total}" if steps else f" #### {total}"
