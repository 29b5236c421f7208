"""From rollouts to rewards: texts, columns, and what to keep when a reward fails.

Axes: P prompts, m rollouts of each.
"""

from __future__ import annotations

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
    """Scores every completion of the chosen prompts: in the first process, for all of them.

    Raises:
      RewardError: if the reward failed; its message says where the completions were kept.
    """
    texts = completion_texts(self.tokenizer, rollouts)
    shape = rollouts.completion_lengths.shape
    total, metrics = processes.on_first(self._scores, data, chosen, texts, shape[1], step)
    return Scores(
      np.asarray(total, np.float64).reshape(shape), np.array(texts, object).reshape(shape), metrics
    )

  def _scores(
    self,
    data: EncodedPrompts,
    chosen: np.ndarray,
    texts: list[str],
    num_rollouts: int,
    step: int | None,
  ) -> tuple[Any, dict[str, float]]:
    """`[P m]` rewards, and what is logged of them."""
    prompts = [data.prompts[i] for i in chosen]
    rows, columns = reward_inputs(prompts, num_rollouts, columns=data.columns)
    context = RewardContext(step=step, num_steps=self.num_steps)
    arguments = {"context": context, "num_rollouts": num_rollouts}
    means: dict[str, float] = {}
    try:
      if isinstance(self.reward, WeightedReward):
        parts = self.reward.components(rows, texts, columns, **arguments)
        total = self.reward.combine(parts)
        if len(parts) > 1:
          means = {f"reward/{name}": _mean(values) for name, values in parts.items()}
      else:
        total = call_reward(self.reward, rows, texts, columns, **arguments)
    except RewardError as error:
      when = "validation" if step is None else f"step_{step}"
      kept = self.folder / f"unscored_{when}.jsonl"
      write_failed_call(kept, rows, texts, error)
      error.args = (f"{error} The completions of this call are in {kept}.",)
      raise
    return total, {**means, **context.metrics}


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
