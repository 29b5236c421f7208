"""From rollouts to rewards: texts, columns, and what to keep when a reward fails.

Axes: P prompts, m rollouts of each.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from tea_jax.data import EncodedPrompts, reward_inputs
from tea_jax.evaluation.sampling import completion_texts
from tea_jax.evaluation.shares import in_shares, is_row_wise
from tea_jax.rewards import RewardContext, RewardError, RewardFunction, WeightedReward, call_reward
from tea_jax.rewards.failed_call import write_failed_call
from tea_jax.rollout.types import Rollouts
from tea_jax.runtime import processes


class Scores(NamedTuple):
  """What a reward said about a batch.

  Attributes:
    rewards: `[P, m]` float64, NaN where not scored.
    texts: `[P, m]` completions as text.
    metrics: means of the parts of a weighted reward, and what rewards wanted logged.
  """

  rewards: np.ndarray
  texts: np.ndarray
  metrics: dict[str, float]


class Completions(NamedTuple):
  """Completions `[P m]` of some prompts of the data."""

  data: EncodedPrompts
  chosen: np.ndarray
  texts: list[str]
  num_rollouts: int
  step: int | None

  def inputs(self) -> tuple[list[str], dict[str, list[Any]]]:
    """Prompts and columns, a row each completion."""
    prompts = [self.data.prompts[i] for i in self.chosen]
    return reward_inputs(prompts, self.num_rollouts, columns=self.data.columns)

  def part(self, first: int, stop: int) -> Completions:
    """Those of some neighbouring prompts."""
    return self._replace(
      chosen=self.chosen[first:stop],
      texts=self.texts[first * self.num_rollouts : stop * self.num_rollouts],
    )


class Scorer:
  """Scores rollouts with a run's reward.

  Args:
    reward: a reward function; of a `WeightedReward` the parts are logged too.
    tokenizer: of the policy.
    num_steps: of the run, told to the reward.
    folder: where the completions of a failed call are kept.
  """

  def __init__(
    self, reward: RewardFunction, tokenizer: Any, *, num_steps: int, folder: pathlib.Path
  ):
    self.reward, self.tokenizer = reward, tokenizer
    self.num_steps, self.folder = num_steps, folder

  def __call__(
    self, data: EncodedPrompts, chosen: np.ndarray, rollouts: Rollouts, *, step: int | None
  ) -> Scores:
    """Scores every completion of the chosen prompts.

    Several processes each score their share of the prompts where the reward is `row_wise`, and the
    first one scores all where it is not, or where a share failed.

    Raises:
      RewardError: if the reward failed; its message says where the completions were kept.
    """
    batch = self.completions(
      data, chosen, rollouts.completion_tokens, rollouts.completion_lengths, step
    )
    found = self._in_shares(batch) if self.row_wise else None
    if found is None:
      found = processes.on_first(self._parts_or_kept, batch)
    return self.finished(*found, np.array(batch.texts, object).reshape(-1, batch.num_rollouts))

  def completions(
    self, data: EncodedPrompts, chosen: np.ndarray, tokens: Any, lengths: Any, step: int | None
  ) -> Completions:
    """What is scored: the texts of `tokens` `[P, m, T_c]` of so many `lengths` `[P, m]`."""
    texts = completion_texts(tokens, lengths, self.tokenizer)
    flat = [text for group in texts for text in group]
    return Completions(data, np.asarray(chosen), flat, len(texts[0]), step)

  @property
  def row_wise(self) -> bool:
    """Whether the reward says that a row's score depends on that row alone."""
    return is_row_wise(self.reward)

  def parts(self, batch: Completions) -> tuple[dict[str, Any], dict[str, float]]:
    """Part of the reward -> scores of the rows, and what rewards wanted logged.

    Raises:
      RewardError: if the reward failed.
    """
    rows, columns = batch.inputs()
    context = RewardContext(step=batch.step, num_steps=self.num_steps)
    arguments = {"context": context, "num_rollouts": batch.num_rollouts}
    if isinstance(self.reward, WeightedReward):
      parts = self.reward.components(rows, batch.texts, columns, **arguments)
    else:
      parts = {"": call_reward(self.reward, rows, batch.texts, columns, **arguments)}
    return parts, context.metrics

  def finished(
    self, parts: Mapping[str, Any], metrics: Mapping[str, float], texts: np.ndarray
  ) -> Scores:
    """The scores of a batch.

    Args:
      parts, metrics: see `parts`, of all its rows.
      texts: `[P, m]`.
    """
    scores = {name: np.asarray(values, np.float64) for name, values in parts.items()}
    means: dict[str, float] = {}
    if isinstance(self.reward, WeightedReward):
      total = self.reward.combine(scores)
      if len(scores) > 1:
        means = {f"reward/{name}": _mean(values) for name, values in scores.items()}
    else:
      (total,) = scores.values()
    return Scores(total.reshape(texts.shape), texts, {**means, **metrics})

  def _in_shares(self, batch: Completions) -> tuple[dict[str, Any], dict[str, float]] | None:
    """What `parts` gives, of the shares of all processes together; None where one failed."""

    def score(first: int, stop: int) -> tuple[Any, ...]:
      return (stop - first, *self.parts(batch.part(first, stop)))

    shares = in_shares(len(batch.chosen), score)
    if shares is None:
      return None
    parts = {name: [v for _, part, _ in shares for v in part[name]] for name in shares[0][1]}
    return parts, mean_metrics((size, metrics) for size, _, metrics in shares)

  def _parts_or_kept(self, batch: Completions) -> tuple[dict[str, Any], dict[str, float]]:
    """What `parts` gives; the completions of a call that failed are kept."""
    try:
      return self.parts(batch)
    except RewardError as error:
      when = "validation" if batch.step is None else f"step_{batch.step}"
      kept = self.folder / f"unscored_{when}.jsonl"
      write_failed_call(kept, batch.inputs()[0], batch.texts, error)
      error.args = (f"{error} The completions of this call are in {kept}.",)
      raise


def mean_metrics(told: Iterable[tuple[int, Mapping[str, float]]]) -> dict[str, float]:
  """What parts of a batch wanted logged, averaged by their sizes.

  Args:
    told: (size, name -> value) of each part; a part may lack a name.

  Example:
    >>> mean_metrics([(1, {"a": 2.0}), (3, {"a": 6.0, "b": 1.0})])
    {'a': 5.0, 'b': 1.0}
  """
  values: dict[str, list[tuple[int, float]]] = {}
  for size, metrics in told:
    for name, value in metrics.items():
      values.setdefault(name, []).append((size, value))
  return {
    name: sum(size * value for size, value in each) / sum(size for size, _ in each)
    for name, each in values.items()
  }


def _mean(values: np.ndarray) -> float:
  scored = values[~np.isnan(values)]
  return float(scored.mean()) if scored.size else float("nan")


def sample_record(
  step: int, prompt: str, texts: np.ndarray, rewards: np.ndarray, advantages: np.ndarray, count: int
) -> dict[str, Any]:
  """The best, the worst and the first others of a group `[m]`, for the log of samples."""
  order = np.argsort(-np.nan_to_num(rewards, nan=-np.inf), kind="stable")
  order = np.concatenate([order[:1], order[1:][-1:], np.sort(order[1:-1])])[:count]
  return {
    "step": step,
    "prompt": prompt,
    "completions": [texts[i] for i in order],
    "rewards": [rewards[i] for i in order],
    "advantages": [advantages[i] for i in order],
  }
