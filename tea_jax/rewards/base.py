"""Reward functions: texts in, float64 scores out, every call checked.

A reward function is any callable `(prompts, completions, **columns) -> scores`, one score a row.
`None` or a masked entry means "not scored" and becomes NaN; a NaN, an infinity, a wrong length or
an exception is an error that names reward, prompt and rollout. Axes: n rows = prompts * rollouts,
the rollouts of a prompt adjacent.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np

from tea_jax.rewards.scores import ScoreError, checked_scores, sequence_items
from tea_jax.rewards.signature import bind
from tea_jax.runtime.user_code import explain

R = TypeVar("R")


class RewardFunction(Protocol):
  """Scores completions; higher is better.

  Called with `prompts` and `completions` (equally many strings) and, by keyword, those data-set
  columns (one entry a row) and that `context` which its signature accepts. Returns one float a
  row; `None` (or a masked entry) where the reward does not apply.

  One with an attribute `row_wise = True` says that a row's score depends on that row alone: calls
  of the sampler are then scored while the next one runs, and several processes score a share of
  the batch each. Without it a batch is one call, of the first process.
  """

  # *args is never used: with it, type checkers accept functions that name fewer columns.
  def __call__(
    self, prompts: Sequence[str], completions: Sequence[str], *args: Any, **columns: Any
  ) -> Sequence[float | None] | np.ndarray: ...


def row_wise(reward: R) -> R:
  """Decorator: says that a row's score depends on that row alone, see `RewardFunction`.

  Example:
    >>> @row_wise
    ... def brevity(prompts, completions):
    ...   return [-len(text) for text in completions]
    >>> brevity.row_wise
    True
  """
  reward.row_wise = True  # type: ignore[attr-defined]
  return reward


@dataclasses.dataclass
class RewardContext:
  """What a reward may know about the run, and where it can log.

  Attributes:
    step: training step, or None in evaluation.
    num_steps: length of the run, or None.
    metrics: extra numbers that the reward wants logged; it writes into this dict.
  """

  step: int | None = None
  num_steps: int | None = None
  metrics: dict[str, float] = dataclasses.field(default_factory=dict)


class RewardError(ValueError):
  """A reward function failed on a row.

  Attributes:
    name: of the reward.
    row: index of the offending row, or None when the whole call failed.
    values: what the function returned, if it returned: nothing computed is lost.
    scored: name -> `[n]` scores of the parts of a weighted reward that came before it; None where
      not scored.
  """

  def __init__(self, message: str, *, name: str, row: int | None = None, values: Any = None):
    super().__init__(message)
    self.name = name
    self.row = row
    self.values = values
    self.scored: dict[str, Sequence[float | None]] = {}


def call_reward(
  reward: RewardFunction,
  prompts: Sequence[str],
  completions: Sequence[str],
  columns: Mapping[str, Sequence[Any]] | None = None,
  *,
  name: str | None = None,
  num_rollouts: int | None = None,
  context: RewardContext | None = None,
  **more_columns: Sequence[Any],
) -> np.ndarray:
  """Calls a reward function and checks everything that it returns.

  Arguments go by name where the function has them, whatever their order; see `signature.bind`. The
  function gets copies, so that nothing it changes reaches the data.

  Args:
    reward: the function.
    prompts, completions: n strings each.
    columns: data-set columns, n entries each; a function receives those that it names (all of them
      if it takes `**columns`).
    name: how errors call the reward; its own name by default.
    num_rollouts: m, so that errors can say prompt i, rollout j; None if rows are not grouped.
    context: handed on to functions with a `context` argument.
    **more_columns: columns by keyword, where their names are known not to clash with the above.

  Returns:
    `[n]` float64; NaN exactly where the function said "not scored" (None or masked).

  Raises:
    RewardError: NaN, infinity, beyond float32, not a number, wrong length, or an exception (with
      file and line) in the function, `sys.exit` included.
    ValueError: inputs of unequal lengths, or arguments that the data do not have.
  """
  name = name or reward_name(reward)
  prompts, completions = list(prompts), list(completions)
  if len(prompts) != len(completions):
    raise ValueError(
      f"reward '{name}' got {len(prompts)} prompts and {len(completions)} completions; "
      "it needs one prompt for each completion"
    )
  columns = {**(columns or {}), **more_columns}
  for column, entries in columns.items():
    if len(entries) != len(prompts):
      raise ValueError(
        f"column '{column}' has {len(entries)} entries for {len(prompts)} completions"
      )
  if not prompts:
    return np.zeros((0,), np.float64)
  arguments = bind(
    reward, name, list(prompts), list(completions), columns, context or RewardContext()
  )
  describe = functools.partial(
    _describe, prompts=prompts, completions=completions, num_rollouts=num_rollouts
  )
  try:
    values = reward(*arguments.args, **arguments.kwargs)
    items = sequence_items(values)
  except RewardError:
    raise
  except (Exception, SystemExit) as error:
    row = getattr(error, "row", None)  # a reward may say which row it failed on
    if isinstance(row, int) and 0 <= row < len(prompts):
      where = f" for {describe(row)}"
    else:
      row = None
      where = f"; the first of its {len(prompts)} rows is {describe(0)}"
    raise RewardError(
      f"reward '{name}' raised {explain(error, kind=True)}{where}", name=name, row=row
    ) from error
  try:
    return checked_scores(items, values, len(prompts))
  except ScoreError as error:
    where = f" for {describe(error.row)}" if error.row is not None else ""
    if error.row is None and error.shows_first:
      where = f"; the first completion is that of {describe(0)}"
    raise RewardError(
      f"reward '{name}' returned {error}{where}{error.advice}",
      name=name,
      row=error.row,
      values=values,
    ) from error


class WeightedReward:
  """Weighted sum of rewards: sum_k weight_k * reward_k over the rewards that scored the row.

  A row that no reward scored is "not scored". Weights are not renormalised where a reward does not
  apply: give such rewards 0 instead of None if their absence should cost nothing.
  """

  def __init__(self, rewards: Mapping[str, tuple[RewardFunction, float]]):
    """Args: rewards: name -> (function, finite weight)."""
    if not rewards:
      raise ValueError("a weighted reward needs at least one reward; it was given none")
    for name, (_, weight) in rewards.items():
      if not np.isfinite(weight):
        raise ValueError(f"the weight of reward '{name}' is {weight}; it must be a finite number")
    self.rewards = dict(rewards)
    self.name = " + ".join(f"{weight:g} {name}" for name, (_, weight) in rewards.items())

  @property
  def row_wise(self) -> bool:
    """Whether every reward's score of a row depends on that row alone."""
    return all(getattr(reward, "row_wise", False) for reward, _ in self.rewards.values())

  def components(
    self,
    prompts: Sequence[str],
    completions: Sequence[str],
    columns: Mapping[str, Sequence[Any]] | None = None,
    *,
    num_rollouts: int | None = None,
    context: RewardContext | None = None,
    **more_columns: Sequence[Any],
  ) -> dict[str, np.ndarray]:
    """The unweighted scores `[n]` of each reward by name, for logs; arguments of `call_reward`."""
    scores: dict[str, np.ndarray] = {}
    for name, (reward, _) in self.rewards.items():
      try:
        scores[name] = call_reward(
          reward,
          prompts,
          completions,
          {**(columns or {}), **more_columns},
          name=name,
          num_rollouts=num_rollouts,
          context=context,
        )
      except RewardError as error:
        error.scored = {
          earlier: [None if np.isnan(value) else float(value) for value in values]
          for earlier, values in scores.items()
        } | error.scored
        raise
    return scores

  def combine(self, components: Mapping[str, np.ndarray]) -> np.ndarray:
    """The weighted sum `[n]` of `components`' result; NaN where no reward scored the row."""
    weighted = np.stack(
      [self.rewards[name][1] * np.asarray(values) for name, values in components.items()]
    )
    scored = ~np.isnan(weighted)
    total = np.where(scored, weighted, 0.0).sum(axis=0)
    return np.where(scored.any(axis=0), total, np.nan)

  def __call__(
    self, prompts: Sequence[str], completions: Sequence[str], **columns: Any
  ) -> np.ndarray:
    context = columns.pop("context", None)
    total = self.combine(self.components(prompts, completions, columns, context=context))
    return np.ma.masked_array(total, mask=np.isnan(total))


def reward_name(reward: Any) -> str:
  """The name of a reward for logs and errors: its `name`, its function's, or its class's."""
  for candidate in (getattr(reward, "name", None), getattr(reward, "__name__", None)):
    if isinstance(candidate, str):
      return candidate
  return type(reward).__name__


def _describe(row, prompts, completions, num_rollouts) -> str:
  prompt, completion = _excerpt(prompts[row]), _excerpt(completions[row])
  if num_rollouts:
    return (
      f"prompt {row // num_rollouts} ({prompt}), rollout {row % num_rollouts} "
      f"with completion {completion}"
    )
  return f"row {row}: prompt {prompt} with completion {completion}"


def _excerpt(text: Any, limit: int = 80) -> str:
  text = str(text)
  return repr(text if len(text) <= limit else text[: limit - 3] + "...")
