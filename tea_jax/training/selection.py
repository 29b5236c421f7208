"""Checkpoint selection: the mean of the best rewards of each validation prompt.

Source: arXiv 2605.10716, appendix B.2: 32 samples for each of 128 prompts, mean of the top 10.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from tea_jax.rollout.engine import RolloutEngine


@dataclasses.dataclass(frozen=True)
class Best:
  """The best validation so far.

  Attributes:
    step: updates done when it was measured.
    score: its value.
  """

  step: int
  score: float


def selection_score(rewards: np.ndarray, top: int) -> float:
  """Mean over prompts of the mean of each prompt's `top` best rewards.

  Args:
    rewards: `[P, n]`; NaN where not scored.
    top: how many of the best count; all of them where fewer are scored.
  """
  scores = []
  for row in np.asarray(rewards, np.float64):
    scored = np.sort(row[~np.isnan(row)])[::-1]
    if scored.size:
      scores.append(scored[:top].mean())
  if not scores:
    raise ValueError("no validation completion was scored; selection needs a reward for them.")
  return float(np.mean(scores))


def better(best: Best | None, step: int, score: float) -> Best:
  """The better of two; the earlier one on ties."""
  return Best(step, score) if best is None or score > best.score else best


def sample_rewards(
  engine: RolloutEngine,
  params: Any,
  tokens: Sequence[Sequence[int]],
  prompt_ids: Sequence[int],
  score: Callable[[Any, np.ndarray], np.ndarray],
  *,
  key: jax.Array,
  num_samples: int,
  prompts_per_call: int,
  num_rollouts: int,
) -> np.ndarray:
  """Rewards of `num_samples` completions of every prompt, in calls of one compiled shape.

  The last call is filled up with repeated prompts, and `num_samples` is drawn in groups of at most
  `num_rollouts`: the shapes are those of training, or one other where fewer samples are asked for.

  Args:
    engine, params: what to sample with.
    tokens: token ids of each prompt.
    prompt_ids: folded into the keys.
    score: `(rollouts, indices of the prompts) -> [P, m]` rewards.
    key: the same for every validation, so that checkpoints meet the same noise.
    num_samples: n.
    prompts_per_call, num_rollouts: shape of a call.

  Returns:
    `[len(tokens), num_samples]` float64.
  """
  group = min(num_rollouts, num_samples)
  rewards = np.full((len(tokens), -(-num_samples // group) * group), np.nan)
  for first in range(0, len(tokens), prompts_per_call):
    filled = [i % len(tokens) for i in range(first, first + prompts_per_call)]
    count = min(prompts_per_call, len(tokens) - first)
    for part, start in enumerate(range(0, num_samples, group)):
      rollouts = engine.generate(
        params,
        [tokens[i] for i in filled],
        key=jax.random.fold_in(key, part),
        num_rollouts=group,
        prompt_ids=[prompt_ids[i] for i in filled],
      )
      kept = jax.tree.map(lambda leaf, count=count: leaf[:count], rollouts)
      rewards[first : first + count, start : start + group] = score(
        kept, np.asarray(filled[:count])
      )
  return rewards[:, :num_samples]
