"""How many votes win a majority against the wrong answers of a group."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def votes_to_win(
  rewards: Float[Array, "*batch num_rollouts"],
  answers: Int[Array, "*batch num_rollouts"],
  *,
  budget: int,
  success_threshold: Float[Array, "..."] | float = 0.5,
  where: Array | None = None,
) -> Int[Array, "*batch"]:
  """Votes of `budget` that beat the strongest wrong answer, at its frequency in the group.

  k = clip(floor(N c_max / m) + 1, 2, floor(N / 2) + 1), c_max the count of the most frequent wrong
  answer; all unparsable answers (negative ids) are one wrong answer.

  Args:
    rewards: `[..., num_rollouts]`; above `success_threshold` is a correct answer.
    answers: `[..., num_rollouts]` integer ids.
    budget: N.
    success_threshold: see `rewards`.
    where: `[..., num_rollouts]`, the rollouts that count.

  Source: arXiv 2604.24957, section B.7.2 and appendix K.
  """
  wrong = rewards <= success_threshold
  if where is not None:
    wrong &= where
  answers = jnp.maximum(answers, -1)
  # One rollout after the other: all pairs at once would be m times the memory of the rewards.
  strongest = jnp.max(
    jax.lax.fori_loop(
      0,
      rewards.shape[-1],
      lambda i, copies: copies + _equal_to(i, answers, wrong),
      jnp.zeros(rewards.shape, jnp.int32),
    ),
    -1,
  )
  if where is None:
    count = rewards.shape[-1]
  else:
    count = jnp.maximum(jnp.sum(where, -1, dtype=jnp.int32), 1)
  most = budget // 2 + 1
  return jnp.clip(budget * strongest // count + 1, min(2, most), most)


def _equal_to(index: Array, answers: Array, wrong: Array) -> Array:
  """1 where a wrong rollout has the answer of rollout `index`, if that is wrong too."""
  answer = jax.lax.dynamic_index_in_dim(answers, index, -1)
  counts = jax.lax.dynamic_index_in_dim(wrong, index, -1)
  return ((answers == answer) & wrong & counts).astype(jnp.int32)
