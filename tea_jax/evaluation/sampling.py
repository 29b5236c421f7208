"""n completions of every prompt, in calls of one compiled shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from tea_jax.rollout.engine import RolloutEngine


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
