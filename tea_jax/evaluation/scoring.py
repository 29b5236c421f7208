"""From rollouts to rewards: texts, columns, and what to keep when a reward fails.

Axes: P prompts, m rollouts of each.
"""

from __future__ import annotations

import contextlib
import itertools
import pathlib
from typing import Any, NamedTuple

import numpy as np

from tea_jax.data import EncodedPrompts, reward_inputs
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


class _Batch(NamedTuple):
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

  def shares(self, count: int) -> list[_Batch]:
    """Cut into as many parts of neighbouring prompts, as even as they come."""
    cuts = [len(self.chosen) * part // count for part in range(count + 1)]
    return [
      self._replace(
        chosen=self.chosen[start:stop],
        texts=self.texts[start * self.num_rollouts : stop * self.num_rollouts],
      )
      for start, stop in itertools.pairwise(cuts)
    ]


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
    texts = completion_texts(self.tokenizer, rollouts)
    shape = rollouts.completion_lengths.shape
    batch = _Batch(data, np.asarray(chosen), texts, shape[1], step)
    scores = self._in_shares(batch) if getattr(self.reward, "row_wise", False) else None
    if scores is None:
      scores = processes.on_first(self._scores, batch)
    parts, metrics = scores
    parts = {name: np.asarray(values, np.float64) for name, values in parts.items()}
    total, means = parts.get("", np.zeros(0)), {}
    if isinstance(self.reward, WeightedReward):
      total = self.reward.combine(parts)
      if len(parts) > 1:
        means = {f"reward/{name}": _mean(values) for name, values in parts.items()}
    return Scores(
      total.reshape(shape), np.array(texts, object).reshape(shape), {**means, **metrics}
    )

  def _in_shares(self, batch: _Batch) -> tuple[dict[str, Any], dict[str, float]] | None:
    """What `_scores` gives, of the shares of all processes together; None where one failed."""
    if not processes.several():
      return None
    own = batch.shares(processes.count())[processes.index()]
    found = None
    with contextlib.suppress(RewardError):
      found = (len(own.chosen), *self._called(own)) if len(own.chosen) else (0, {}, {})
    shares = processes.exchange(found)
    if any(share is None for share in shares):
      return None  # the first process finds the error again, and says it of the whole batch
    shares = [share for share in shares if share[0]]
    parts = {name: [v for _, part, _ in shares for v in part[name]] for name in shares[0][1]}
    told = dict.fromkeys(name for _, _, metrics in shares for name in metrics)
    metrics = {name: _weighted_mean(name, shares) for name in told}
    return parts, metrics

  def _scores(self, batch: _Batch) -> tuple[dict[str, Any], dict[str, float]]:
    """Part of the reward -> scores `[P m]`, and what rewards wanted logged."""
    try:
      return self._called(batch)
    except RewardError as error:
      when = "validation" if batch.step is None else f"step_{batch.step}"
      kept = self.folder / f"unscored_{when}.jsonl"
      write_failed_call(kept, batch.inputs()[0], batch.texts, error)
      error.args = (f"{error} The completions of this call are in {kept}.",)
      raise

  def _called(self, batch: _Batch) -> tuple[dict[str, Any], dict[str, float]]:
    rows, columns = batch.inputs()
    context = RewardContext(step=batch.step, num_steps=self.num_steps)
    arguments = {"context": context, "num_rollouts": batch.num_rollouts}
    if isinstance(self.reward, WeightedReward):
      parts = self.reward.components(rows, batch.texts, columns, **arguments)
    else:
      parts = {"": call_reward(self.reward, rows, batch.texts, columns, **arguments)}
    return parts, context.metrics


def _weighted_mean(name: str, shares: list[Any]) -> float:
  """Mean of what the shares told, each `(prompts, scores, metrics)`, by their prompts."""
  told = [(size, metrics[name]) for size, _, metrics in shares if name in metrics]
  return sum(size * value for size, value in told) / sum(size for size, _ in told)


def _mean(values: np.ndarray) -> float:
  scored = values[~np.isnan(values)]
  return float(scored.mean()) if scored.size else float("nan")


def completion_texts(tokenizer: Any, rollouts: Rollouts) -> list[str]:
  """Text of every completion, prompt by prompt; special tokens left out."""
  tokens = np.asarray(rollouts.completion_tokens)
  lengths = np.asarray(rollouts.completion_lengths)
  rows = [row[:n].tolist() for group, ns in zip(tokens, lengths) for row, n in zip(group, ns)]
  return tokenizer.batch_decode(rows, skip_special_tokens=True)


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
