"""Pools of scored rollouts that stand for a policy, drawn once and kept in files.

Axes: P prompts, n rollouts in a pool, T time.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from tea_jax.data import EncodedPrompts, reward_inputs
from tea_jax.evaluation.records import check_spec
from tea_jax.evaluation.sampling import completion_texts, sample_calls
from tea_jax.rewards import RewardFunction, call_reward, reward_name
from tea_jax.rollout.engine import RolloutEngine
from tea_jax.runtime.files import write_whole
from tea_jax.runtime.keys import make_key

Params = Any


class Pools(NamedTuple):
  """Scored rollouts that stand for the policy.

  Attributes:
    tokens: `[P, n, T]` prompt, completion, padding.
    prompt_lengths: `[P]`.
    lengths: `[P, n]` of prompt and completion together.
    rewards: `[P, n]`.
  """

  tokens: Int[np.ndarray, "P n T"]
  prompt_lengths: Int[np.ndarray, "P"]
  lengths: Int[np.ndarray, "P n"]
  rewards: Float[np.ndarray, "P n"]


def sample_pools(
  engine: RolloutEngine,
  params: Params,
  prompts: EncodedPrompts,
  reward: RewardFunction,
  *,
  folder: pathlib.Path,
  pool_size: int,
  seed: int = 0,
  spec: Mapping[str, Any] | None = None,
  progress: Callable[[int, int], None] | None = None,
) -> Pools:
  """Draws and scores a pool for each prompt; kept in `folder`, a file a prompt, and read again.

  Args:
    engine, params: the policy.
    prompts: one pool each.
    reward: of the rollouts.
    folder: of the files.
    pool_size: n.
    seed: of the sampling.
    spec: what else identifies the pools, see `identity.evaluation_spec`; JSON.
    progress: called with the prompts done and their total.

  Raises:
    ValueError: the folder holds pools of another policy or reward, or a completion was not scored.
  """
  check_spec(folder, {**(spec or {}), "reward": reward_name(reward)})
  width = max(map(len, prompts.tokens)) + engine.sampling.max_completion_length
  pools = []
  for index, (prompt, tokens) in enumerate(zip(prompts.prompts, prompts.tokens, strict=True)):
    path = folder / f"pool-{prompt.id}-{pool_size}-{seed}.npz"
    if not path.exists():
      (call,) = sample_calls(
        engine,
        params,
        [tokens],
        [prompt.id],
        key_of_part=lambda _: make_key(seed),
        num_samples=pool_size,
        rollouts_per_call=pool_size,
        prompts_per_call=1,
      )
      lengths = np.asarray(call.rollouts.completion_lengths[0])
      completions = np.asarray(call.rollouts.completion_tokens[0])
      (texts,) = completion_texts(completions[None], lengths[None], engine.policy.tokenizer)
      repeated, columns = reward_inputs([prompt], pool_size, columns=prompts.columns)
      rewards = call_reward(reward, repeated, texts, columns, num_rollouts=pool_size)
      if np.isnan(rewards).any():
        raise ValueError(
          f"{np.isnan(rewards).sum()} of {pool_size} completions of {prompt.text[:80]!r} were not "
          "scored; an oracle needs a reward for all of them"
        )
      rows = np.zeros((pool_size, len(tokens) + max(lengths)), np.int32)
      for row, completion, length in zip(rows, completions, lengths, strict=True):
        row[: len(tokens) + length] = [*tokens, *completion[:length]]
      arrays = {"tokens": rows, "lengths": lengths + len(tokens), "rewards": rewards}
      write_whole(path, lambda temporary: _save(temporary, arrays))  # noqa: B023 (called at once)
    with np.load(path) as stored:
      rows = stored["tokens"][:, :width]
      # The longest of these prompts sets the width; a file knows of its own prompt only.
      rows = np.pad(rows, ((0, 0), (0, width - rows.shape[1])))
      pools.append((rows, stored["lengths"], stored["rewards"]))
    if progress is not None:
      progress(index + 1, len(prompts.tokens))
  stacked = [np.stack(values) for values in zip(*pools)]
  prompt_lengths = np.asarray([len(tokens) for tokens in prompts.tokens], np.int32)
  return Pools(stacked[0], prompt_lengths, stacked[1], stacked[2])


def _save(path: pathlib.Path, arrays: dict[str, Any]) -> None:
  with open(path, "wb") as file:  # np.savez would append .npz to a bare path
    np.savez(file, **arrays)
