"""The exact best-of-N advantage of a large pool: what the other rules approximate."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from tea_jax.advantages.parts import sort_rewards, unsort
from tea_jax.advantages.registry import register_advantage
from tea_jax.advantages.rule import Group, GroupRule


@register_advantage("best_of_n_oracle")
def best_of_n_oracle(*, budget: int = 128, scaled: bool = True) -> GroupRule:
  """Influence of each reward on E[max of N] when the group is the whole reward distribution.

  A_i = N (E max(r_i, M_{N-1}) - E M_N),  M_k the maximum of k draws with replacement

  (1/m) sum_i A_i score_i is the exact gradient of E[M_N] on the empirical distribution, so a group
  of m < N says little: this is the yardstick for pools of hundreds of rollouts, not a training
  rule. Sorted ascending with F_j = j/m and gaps g_j,

    E M_N = r_(m) - sum_j g_j F_j^N,   E max(r_(i), M_{N-1}) = r_(m) - sum_{j >= i} g_j F_j^(N-1):

  one sort and one reversed cumulative sum. The mean over the group is 0 and ties share one value.

  Args:
    budget: N.
    scaled: multiply by N; without, the difference of the two expectations.

  Raises:
    ValueError: if `budget` is less than 1.

  Source: arXiv 2605.10716, section 4.6.
  """
  if budget != int(budget) or budget < 1:
    raise ValueError(f"budget={budget} must be a positive integer")

  def compute(group: Group) -> Array:
    ascending, order = sort_rewards(group.rewards)
    gaps = jnp.diff(ascending, axis=-1)
    log_share = _log_shares(group)
    # Both sums are of the same gaps: their difference is taken before the expectations can cancel.
    above = jnp.cumsum((gaps * jnp.exp((budget - 1) * log_share))[..., ::-1], -1)[..., ::-1]
    above = jnp.concatenate([above, jnp.zeros_like(ascending[..., :1])], -1)
    all_draws = jnp.sum(gaps * jnp.exp(budget * log_share), -1, keepdims=True)
    advantages = unsort(all_draws - above, order)
    return advantages * budget if scaled else advantages

  return GroupRule(
    "best_of_n_oracle", compute, {"budget": budget, "scaled": scaled}, scale_degree=1
  )


def _log_shares(group: Group) -> Array:
  """log(j/n) for j = 1 ... m-1; those at j >= n multiply gaps that are 0."""
  rank = np.arange(1, group.rewards.shape[-1])
  if group.where is None:
    return jnp.asarray(np.log(rank / group.count), group.rewards.dtype)
  missing = jnp.clip(1 - rank / jnp.maximum(group.count, 1), 0, None)
  # log1p keeps the relative precision near j = n, which the power N would lose.
  return jnp.where(missing < 1, jnp.log1p(-jnp.minimum(missing, 1 - 1e-6)), 0)
