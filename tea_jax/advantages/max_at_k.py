"""max@k: an unbiased policy gradient of the expected best of k <= m rollouts."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from tea_jax.advantages.group_relative import check_standardization
from tea_jax.advantages.parts import group_sum, sort_rewards, standardize, unsort
from tea_jax.advantages.registry import register_advantage
from tea_jax.advantages.rule import Group, GroupRule
from tea_jax.tail.order_statistics import log_binomial


@register_advantage("max_at_k")
def max_at_k(
  *,
  k: int | None = None,
  normalize: bool = True,
  leave_one_out: bool = False,
  ddof: int = 0,
  epsilon: float = 1e-8,
) -> GroupRule:
  """Transformed rewards of max@k, averaged over all subsets of k rollouts.

  T_i = (1/C(m,k)) sum_{S, |S| = k, i in S} max_S r
  leave_one_out: T_i = (1/C(m,k)) sum_{S, |S| = k, i in S} (max_S r - max_{S - i} r)

  E[sum_i T_i score_i] is the gradient of E[max of k] exactly, for both; the second has less
  variance (k = m is `bon_max_second`). Under a trainer that averages over rollouts it comes times
  1/m. `normalize` standardises T over the group ("BoN mean" of arXiv 2605.10716), at the price of
  exactness; k = 1 is then GRPO-Z.

  Sorted ascending, T grows by C(i-1,k-1)/C(m,k) (leave-one-out: C(i,k-1)/C(m,k)) times the gap
  from the i-th to the next reward: O(m log m), and ties need no rule.

  Args:
    k: the best of how many; None for half the group. With k = m all plain T are equal: zeros.
      It stays as it is in a group of which some rollouts do not count.
    normalize: standardise T over the group.
    leave_one_out: subtract from each subset's maximum that of the subset without the rollout.
    ddof, epsilon: see `grpo`.

  Raises:
    ValueError: if `k` is not a positive integer, or 1 with `leave_one_out` (that is `rloo`), or,
      at the call, if k exceeds the number of rollouts.

  Example:
    >>> print(max_at_k(k=2, normalize=False)(jnp.array([0.0, 3.0, 6.0])))  # 3 pairs
    [3. 3. 4.]

  Source: arXiv 2510.23393, eq. 9 and appendix A; arXiv 2605.10716, eqs. 23, 24.
  """
  if k is not None and (k != int(k) or k < 1):
    raise ValueError(f"k={k} must be a positive integer, or None for half the group")
  if leave_one_out and k == 1:
    raise ValueError("leave_one_out needs k >= 2; for k=1 the rule is rloo")
  check_standardization(ddof, epsilon)

  def compute(group: Group) -> Array:
    num_rollouts = group.rewards.shape[-1]
    size = _subset_size(k, num_rollouts, leave_one_out)
    ascending, order = sort_rewards(group.rewards)
    gaps = jnp.diff(ascending, axis=-1)
    weights = _rows(lambda n: _gap_weights(n, num_rollouts, size, leave_one_out), group)
    growth = jnp.cumsum(gaps * weights, -1)
    transformed = jnp.concatenate([jnp.zeros_like(ascending[..., :1]), growth], -1)
    if not normalize and not leave_one_out:
      lowest = _rows(lambda n: _lowest_weights(n, num_rollouts, size), group)
      transformed = transformed + group_sum(lowest * ascending, None)
    transformed = unsort(transformed, order)
    if not normalize:
      return transformed
    # The transformed rewards of a constant group are k / m times the reward: the offset that the
    # gaps leave out.
    magnitude = jnp.max(jnp.abs(group.rewards), -1, keepdims=True) * (size / num_rollouts)
    return standardize(transformed, group, ddof=ddof, epsilon=epsilon, magnitude=magnitude)

  def smallest_group(num_rollouts: int) -> int:
    # With all of the group in the one subset, the plain transformed rewards are all equal.
    size = _subset_size(k, num_rollouts, leave_one_out)
    return max(2, size + 1 if normalize and not leave_one_out else size)

  def check(num_rollouts: int) -> None:
    if k is not None and k > num_rollouts:
      raise ValueError(
        f"max_at_k: k={k} exceeds num_rollouts={num_rollouts}; use k <= {num_rollouts}"
      )

  return GroupRule(
    "max_at_k",
    compute,
    {
      "k": k,
      "normalize": normalize,
      "leave_one_out": leave_one_out,
      "ddof": ddof,
      "epsilon": epsilon,
    },
    minimum_rollouts=2 if k is None else smallest_group(k),
    minimum_for=smallest_group,
    check=check,
    scale_degree=0 if normalize else 1,
  )


def _subset_size(k: int | None, num_rollouts: int, leave_one_out: bool) -> int:
  if k is None:
    return max(2 if leave_one_out else 1, num_rollouts // 2)
  return int(k)


def _weights(upper, lower, count, k: int, counted) -> np.ndarray:
  """C(upper, lower) / C(count, k) where `counted` and count >= k, else 0."""
  legal = counted & (count >= k)
  log_weight = log_binomial(upper, lower) - np.where(count >= k, log_binomial(count, k), 0)
  return np.where(legal, np.exp(np.where(legal, log_weight, 0)), 0.0)


def _gap_weights(counts: np.ndarray, num_rollouts: int, k: int, leave_one_out: bool) -> np.ndarray:
  """`[len(counts), m - 1]`: weights of the gaps above the i-th of n, for n in `counts`."""
  count, rank = counts[:, None], np.arange(1, num_rollouts)[None, :]
  return _weights(rank if leave_one_out else rank - 1, k - 1, count, k, rank < count)


def _lowest_weights(counts: np.ndarray, num_rollouts: int, k: int) -> np.ndarray:
  """`[len(counts), m]`: weights of the ascending rewards in the T of the lowest."""
  count, rank = counts[:, None], np.arange(1, num_rollouts + 1)[None, :]
  if k == 1:
    return np.where(rank == 1, 1.0, 0.0) / np.maximum(count, 1)
  return _weights(rank - 2, k - 2, count, k, (rank >= k) & (rank <= count))


def _rows(table: Callable[[np.ndarray], np.ndarray], group: Group) -> Array:
  """The weights for each group's size: one row when every rollout counts, else a table of all."""
  dtype = group.rewards.dtype
  if group.where is None:
    return jnp.asarray(table(np.array([group.count]))[0], dtype)
  rows = table(np.arange(group.rewards.shape[-1] + 1))
  return jnp.asarray(rows, dtype)[group.count[..., 0]]
