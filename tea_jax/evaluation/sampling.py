"""n completions of every prompt, in calls of one compiled shape."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from tea_jax.rollout.types import Rollouts
from tea_jax.scaling.generators import Engine


class Call(NamedTuple):
  """What one call of an engine sampled.

  Attributes:
    prompts: `[P]` indices of its prompts.
    samples: which of a prompt's n completions these are.
    rollouts: `[P, m]` the completions; m is more than `samples` where n is no multiple of it.
  """

  prompts: np.ndarray
  samples: slice
  rollouts: Rollouts


def sample_calls(
  engine: Engine,
  params: Any,
  tokens: Sequence[Sequence[int]],
  prompt_ids: Sequence[int],
  *,
  key_of_part: Callable[[int], jax.Array],
  num_samples: int,
  rollouts_per_call: int,
  prompts_per_call: int,
  prompts: Sequence[int] | None = None,
) -> Iterator[Call]:
  """Draws `num_samples` completions of every prompt, a call at a time.

  The last call is filled up with repeated prompts, which are left out of what it gives, and the
  completions of a prompt are drawn in groups: the shapes are those of training, or one other where
  fewer samples are asked for. Keys are folded with the prompts' ids, so that a prompt's completions
  do not depend on the call that it is in.

  Args:
    engine, params: what to sample with.
    tokens: token ids of each prompt.
    prompt_ids: folded into the keys.
    key_of_part: key of the p-th group of a prompt's completions.
    num_samples: n.
    rollouts_per_call: completions of a group, at most; n where it is smaller.
    prompts_per_call: prompts of a call.
    prompts: indices of those to sample; None for all.
  """
  chosen = range(len(tokens)) if prompts is None else prompts
  group = min(rollouts_per_call, num_samples)
  for first in range(0, len(chosen), prompts_per_call):
    kept = list(chosen[first : first + prompts_per_call])
    filled = [kept[i % len(kept)] for i in range(prompts_per_call)]
    for part, start in enumerate(range(0, num_samples, group)):
      rollouts = engine.generate(
        params,
        [tokens[i] for i in filled],
        key=key_of_part(part),
        num_rollouts=group,
        prompt_ids=[prompt_ids[i] for i in filled],
      )
      rollouts = jax.tree.map(operator.itemgetter(slice(len(kept))), rollouts)
      yield Call(np.asarray(kept), slice(start, min(start + group, num_samples)), rollouts)


def sample_rewards(
  engine: Engine,
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
  """Rewards of `num_samples` completions of every prompt.

  Args:
    engine, params, tokens, prompt_ids, num_samples, prompts_per_call: see `sample_calls`.
    score: `(rollouts, indices of the prompts) -> [P, m]` rewards.
    key: the same for every validation, so that checkpoints meet the same noise.
    num_rollouts: of a training group.

  Returns:
    `[len(tokens), num_samples]` float64.
  """
  rewards = np.full((len(tokens), num_samples), np.nan)
  for call in sample_calls(
    engine,
    params,
    tokens,
    prompt_ids,
    key_of_part=lambda part: jax.random.fold_in(key, part),
    num_samples=num_samples,
    rollouts_per_call=num_rollouts,
    prompts_per_call=prompts_per_call,
  ):
    scores = score(call.rollouts, call.prompts)
    rewards[call.prompts, call.samples] = scores[:, : call.samples.stop - call.samples.start]
  return rewards


def completion_texts(tokens: Any, lengths: Any, tokenizer: Any) -> list[list[str]]:
  """Text of every completion, `[P][m]`, without special tokens.

  Args:
    tokens: `[P, m, T_c]`.
    lengths: `[P, m]`.
    tokenizer: of the policy.
  """
  tokens, lengths = np.asarray(tokens), np.asarray(lengths)
  return [
    tokenizer.batch_decode(
      [row[:length].tolist() for row, length in zip(rows, row_lengths, strict=True)],
      skip_special_tokens=True,
    )
    for rows, row_lengths in zip(tokens, lengths, strict=True)
  ]
