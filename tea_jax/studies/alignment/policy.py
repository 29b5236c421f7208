"""Oracle alignment on a real policy: gradients of the last block, exact, summed over prompts.

One pass over the pools accumulates the gradient of `sum_i w_i log pi(y_i)` for many weight vectors
w at once (every rule, group size and seed, and the oracle at the same groups): the score of each
rollout with respect to the last block is computed once and added to each sum with its weight.

Axes: P prompts, n rollouts in a pool, K weight vectors, R rows, T time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tea_jax.advantages import GroupRule
from tea_jax.models.attention import causal_attention
from tea_jax.models.causal_lm import embed_tokens, head_weight, run_layers
from tea_jax.models.config import ModelConfig
from tea_jax.models.fused_head import HeadOptions, default_chunk, fused_logprobs
from tea_jax.models.layers import normalize
from tea_jax.models.policy import Policy
from tea_jax.runtime.keys import make_key
from tea_jax.studies.alignment.estimators import (
  Alignment,
  accepts_groups,
  draw_groups,
  gradient_cosine,
  group_advantages,
  oracle_advantages,
  summarize_cosines,
)
from tea_jax.studies.alignment.pools import Pools

Params = Any
ORACLE = "oracle"
Label = tuple[int, int, str]
"""Seed, group size, and rule or `ORACLE`."""


def make_gradient_sums(
  policy: Policy, *, temperature: float = 1.0
) -> Callable[..., dict[str, Any]]:
  """A compiled function that adds weighted scores of rollouts to gradient sums.

  Returns:
    `(sums, params, tokens [R, T], prompt_lengths [R], lengths [R], weights [K, R]) -> sums`, where
    each leaf of `sums` is `[K, ...]`: `sums[k] += sum_r weights[k, r] grad log pi(y_r)`, the
    gradient with respect to the last block. `sums` is donated.
  """
  config: ModelConfig = policy.config
  before = dataclasses.replace(config, num_layers=config.num_layers - 1)
  last = dataclasses.replace(config, num_layers=1)

  def add(sums, params, tokens, prompt_lengths, lengths, weights):
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)

    def attend(query: Array, key: Array, value: Array) -> tuple[Array, None]:
      # Rows are left-aligned: on valid tokens the causal mask alone is right.
      attended = causal_attention(query, key, value, sliding_window=config.sliding_window)
      return attended, None

    def last_block(block: Params, row: Float[Array, "T D"]) -> Float[Array, "T D"]:
      return run_layers(last, block, row[None], positions[:1], attend, scan=False)[0][0]

    def total_logprob(states: Float[Array, "R T D"]) -> Float[Array, ""]:
      hidden = normalize(states, params["final_norm"], config)[:, :-1]
      places = jnp.arange(1, tokens.shape[1])
      valid = (places >= prompt_lengths[:, None]) & (places < lengths[:, None])
      weight, vocabulary_first = head_weight(config, params)
      options = HeadOptions(
        vocabulary_first, float(temperature), False, default_chunk(valid.size, config.vocab_size)
      )
      flat = hidden.reshape(valid.size, -1)
      # pyright sees the custom_vjp wrapper's result as an object.
      scored: Any = fused_logprobs(
        flat, weight, tokens[:, 1:].reshape(-1), valid.reshape(-1), options
      )
      return jnp.sum(scored[0])

    layers = params["layers"]
    states = embed_tokens(config, params, tokens, positions, policy.dtype)
    earlier = jax.tree.map(lambda leaf: leaf[:-1], layers)
    states, _ = run_layers(before, earlier, states, positions, attend)
    block = jax.tree.map(lambda leaf: leaf[-1:], layers)
    outputs = jax.vmap(last_block, (None, 0))(block, states)
    slopes = jax.grad(total_logprob)(outputs)

    def score(row: Array, slope: Array) -> Params:
      return jax.vjp(lambda block: last_block(block, row), block)[1](slope)[0]

    scores = jax.vmap(score)(states, slopes)
    return jax.tree.map(
      lambda total, each: total + jnp.tensordot(weights, each[:, 0], (1, 0)), sums, scores
    )

  return jax.jit(add, donate_argnums=0)


def empty_sums(params: Params, count: int) -> Params:
  """`[count, ...]` zeros for every parameter of the last block."""
  return jax.tree.map(
    lambda leaf: jnp.zeros((count, *leaf.shape[1:]), jnp.float32), params["layers"]
  )


def group_weights(
  rules: Mapping[str, GroupRule],
  rewards: Float[np.ndarray, "P n"],
  *,
  num_rollouts: Sequence[int],
  num_seeds: int,
  budget: int,
  seed: int = 0,
) -> dict[tuple[int, int, str], Float[np.ndarray, "P n"]]:
  """Weights of each pool's rollouts, by (seed, m, rule or `ORACLE`); 0 outside of the group.

  Rules that refuse groups of m have no entry there.
  """
  pools = jnp.asarray(rewards, jnp.float32)
  oracle = oracle_advantages(pools, budget=budget)
  weights = {}
  for draw in range(num_seeds):
    group_key, rule_key = jax.random.split(jax.random.fold_in(make_key(seed), draw))
    for size in num_rollouts:
      indices = draw_groups(group_key, pools.shape[:1], pools.shape[1], size)
      advantages = {ORACLE: jnp.take_along_axis(oracle, indices, -1)}
      for name, rule in rules.items():
        if accepts_groups(name, rule, size):
          advantages[name] = group_advantages(rule, pools, indices, key=rule_key)
      for name, values in advantages.items():
        row = np.zeros(pools.shape, np.float32)
        # A cosine does not see a common factor; sums of like size lose no digits.
        scale = max(float(jnp.abs(values).max()), np.finfo(np.float32).tiny)
        np.put_along_axis(row, np.asarray(indices), np.asarray(values) / scale, -1)
        weights[draw, size, name] = row
  return weights


def plan_passes(labels: Sequence[Label], capacity: int) -> list[list[Label]]:
  """Labels in parts of at most `capacity` (but 2): each with the oracle of its seed and size."""
  capacity = max(2, capacity)
  passes: list[list[Label]] = [[]]
  for draw, size in dict.fromkeys(label[:2] for label in labels):
    names = [label for label in labels if label[:2] == (draw, size) and label[2] != ORACLE]
    if passes[-1] and len(passes[-1]) + 1 + len(names) > capacity:
      passes.append([])
    while names:
      if len(passes[-1]) + 2 > capacity:
        passes.append([])
      fitting = capacity - len(passes[-1]) - 1
      passes[-1] += [(draw, size, ORACLE), *names[:fitting]]
      names = names[fitting:]
  return passes


def policy_alignment(
  policy: Policy,
  params: Params,
  pools: Pools,
  rules: Mapping[str, GroupRule],
  *,
  num_rollouts: Sequence[int],
  num_seeds: int,
  budget: int,
  temperature: float = 1.0,
  seed: int = 0,
  rows: int | None = None,
  memory: int = 6 << 30,
  progress: Callable[[int, int], None] | None = None,
) -> dict[int, dict[str, Alignment]]:
  """Cosine of each rule's gradient to the oracle's, by group size.

  Args:
    policy, params: the policy that the pools were drawn from.
    pools: of each prompt.
    rules: need rewards (and a key) only.
    num_rollouts: group sizes m.
    num_seeds: draws of groups.
    budget: N of the oracle.
    temperature: of the sampling.
    seed: of the groups.
    rows: rollouts whose scores are held at once; by default up to 64, in a quarter of the memory.
    memory: bytes for scores and gradient sums; sums that do not fit take another pass over the
      data. At least two sums and one score are held.
    progress: called with the chunks done and their total.

  Returns:
    m -> rule -> `Alignment`; rules that refuse groups of m are left out there.

  Raises:
    ValueError: for a rule that needs more than rewards.
  """
  block = sum(leaf.size // leaf.shape[0] for leaf in jax.tree.leaves(params["layers"]))
  usable = {
    size: [name for name, rule in rules.items() if accepts_groups(name, rule, size)]
    for size in num_rollouts
  }
  add = make_gradient_sums(policy, temperature=temperature)
  weights = group_weights(
    rules, pools.rewards, num_rollouts=num_rollouts, num_seeds=num_seeds, budget=budget, seed=seed
  )
  cosine = jax.jit(gradient_cosine)
  cosines: dict[tuple[int, str], list[float]] = {}
  num_prompts, pool_size = pools.rewards.shape
  rows = min(rows or max(1, min(64, memory // (16 * block))), pool_size)
  chunks = -(-pool_size // rows)
  passes = plan_passes(list(weights), (memory - 4 * block * rows) // (4 * block))
  vectors = max(map(len, passes))
  done = 0
  for labels in passes:
    # A pass may have fewer sums than others; rows of zeros keep the compiled shape.
    padding = vectors - len(labels)
    sums = empty_sums(params, vectors)
    for prompt in range(num_prompts):
      stacked = np.stack([weights[label][prompt] for label in labels])
      stacked = np.pad(stacked, ((0, padding), (0, chunks * rows - pool_size)))
      for chunk in range(chunks):
        chosen = np.arange(chunk * rows, (chunk + 1) * rows)
        inside = np.minimum(chosen, pool_size - 1)  # padding rows have weight 0
        sums = add(
          sums,
          params,
          pools.tokens[prompt, inside],
          np.full(rows, pools.prompt_lengths[prompt]),
          pools.lengths[prompt, inside],
          stacked[:, chosen],
        )
        jax.block_until_ready(sums)
        done += 1
        if progress is not None:
          progress(done, len(passes) * num_prompts * chunks)
    index = {label: k for k, label in enumerate(labels)}
    for (draw, size, name), k in index.items():
      if name != ORACLE:
        pair = [
          jax.tree.map(lambda leaf, j=j: leaf[j], sums) for j in (k, index[draw, size, ORACLE])
        ]
        cosines.setdefault((size, name), []).append(float(cosine(*pair)))
    del sums
  return {
    size: {name: summarize_cosines(cosines[size, name]) for name in names}
    for size, names in usable.items()
  }
