"""TEA with its bias cancelled: several sub-groups of one group, combined."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from tea_jax import tail
from tea_jax.advantages.parts import centre, positions_of, sort_rewards, unsort
from tea_jax.advantages.registry import register_advantage
from tea_jax.advantages.rule import Group, GroupRule
from tea_jax.advantages.tea import SCALE_FLOOR, check_tail
from tea_jax.tail.subsets import (
  Shaping,
  Subset,
  average_over_orders,
  cancelling_subsets,
  draw_orders,
  subset_values,
)


@register_advantage("prefix_tea")
def prefix_tea(
  *,
  tail_fraction: float = 0.25,
  budget: int = 128,
  order: int = 2,
  fractions: Sequence[float] = (0.25, 0.5, 0.75, 1.0),
  objective: str = "norm",
  shuffle: bool = True,
  positive_part: bool = True,
  scale_floor: float = SCALE_FLOOR,
) -> GroupRule:
  """TEA over nested prefixes of the group, weighted so that the bias of order 1/m^order cancels.

  A_i = sum_j w_j (m / n_j) 1{i <= n_j} relu(psi(r_i; eta_hat(r_1 ... r_{n_j}))), centred over the
  group. The order of the rollouts is arbitrary, and it costs variance, 30 to 50 times that of
  `tea`: worth it for thousands of prompts a step, else see `subset_tea`.

  Args:
    tail_fraction, budget, positive_part, scale_floor: see `tea`.
    order: K, powers of 1/m cancelled in the bias; fewer than there are fractions.
    fractions: shares of the group that the prefixes take, strictly increasing in (0, 1].
    objective: of the weights, "norm" or "variance"; see `tea_jax.tail.cancellation_weights`.
    shuffle: order each group by the key first; False takes the rollouts as they come, which is
      right only if they come in no particular order (not by time or length).

  Raises:
    ValueError: if `budget` is too small to extrapolate, or, at the call, the group too small for
      its prefixes.

  Example:
    >>> rule = prefix_tea(order=1, fractions=(0.5, 1.0), shuffle=False)
    >>> print(rule(jnp.arange(16.0)))  # prefixes of 8 and 16, weights -1 and 2
    [-1. -1. -1. -1. -1. -1. -1. -9. -1. -1. -1. -1. -1. -1. -1. 23.]

  Source: arXiv 2605.10716, eqs. 17, 18, 112-116.
  """
  plan = _Plan(
    tail_fraction, budget, order, tuple(fractions), objective, positive_part, scale_floor
  )
  plan.check()

  def compute(group: Group) -> Array:
    ordered, descending = _descending(group)
    positions = positions_of(group.key if shuffle else None, group)
    positions = jnp.take_along_axis(positions, descending, -1)
    total = jnp.zeros_like(ordered)
    for subset in plan.subsets(group):
      total = total + subset_values(ordered, positions, subset, plan.shaping)
    return centre(unsort(total, descending), group)

  return GroupRule(
    "prefix_tea",
    compute,
    {**plan._asdict(), "shuffle": shuffle},
    needs=("key",) if shuffle else (),
    minimum_rollouts=plan.smallest_group(),
    scale_degree=1,
    check=plan.sizes,
  )


@register_advantage("subset_tea")
def subset_tea(
  *,
  tail_fraction: float = 0.25,
  budget: int = 128,
  order: int = 1,
  fractions: Sequence[float] = (0.5, 1.0),
  num_orders: int = 16,
  objective: str = "norm",
  positive_part: bool = True,
  scale_floor: float = SCALE_FLOOR,
) -> GroupRule:
  """Prefix-TEA averaged over random orders: its small bias at about the variance of `tea`.

  A_i = sum_j w_j (1/P) sum_p (m / n_j) 1{i in S_pj} relu(psi(r_i; eta_hat(S_pj))), centred over the
  group; S_pj the first n_j rollouts of the p-th of P random orders. Rollouts are exchangeable, so
  each order has the same expectation; the average removes what the arbitrary order adds.

  Args:
    tail_fraction, budget, positive_part, scale_floor: see `tea`.
    order, fractions, objective: see `prefix_tea`.
    num_orders: P >= 1; cost is proportional to it.

  Raises:
    ValueError: if `budget` is too small to extrapolate, `num_orders` < 1, or, at the call, the
      group too small for its subsets.

  Example:
    >>> rule, rewards = subset_tea(num_orders=4), jnp.arange(16.0)
    >>> rule(rewards, key=jax.random.key(0)).shape
    (16,)
  """
  plan = _Plan(
    tail_fraction, budget, order, tuple(fractions), objective, positive_part, scale_floor
  )
  plan.check()
  if num_orders < 1:
    raise ValueError(f"num_orders={num_orders} must be at least 1")

  def compute(group: Group) -> Array:
    assert group.key is not None
    ordered, descending = _descending(group)
    positions = draw_orders(group.key, ordered.shape, num_orders, where=group.where)
    positions = jnp.take_along_axis(positions, descending[None], -1)
    total = average_over_orders(ordered, positions, plan.subsets(group), plan.shaping)
    return centre(unsort(total, descending), group)

  return GroupRule(
    "subset_tea",
    compute,
    {**plan._asdict(), "num_orders": num_orders},
    needs=("key",),
    minimum_rollouts=plan.smallest_group(),
    scale_degree=1,
    check=plan.sizes,
  )


class _Plan(NamedTuple):
  """The static side of a prefix rule: sizes, weights and tail counts for every group size."""

  tail_fraction: float
  budget: int
  order: int
  fractions: tuple[float, ...]
  objective: str
  positive_part: bool
  scale_floor: float

  def check(self) -> None:
    check_tail(self.tail_fraction, self.budget, self.scale_floor)
    # Order and objective are checked against as many prefixes as there are fractions.
    tail.cancellation_weights(
      range(1, len(self.fractions) + 1), self.order, objective=self.objective
    )
    self.smallest_group()

  def sizes(self, num_rollouts: int) -> tuple[int, ...]:
    return tail.compatible_prefixes(num_rollouts, self.tail_fraction, self.fractions)

  def is_legal(self, num_rollouts: int) -> bool:
    try:
      self.sizes(num_rollouts)
    except ValueError:
      return False
    return True

  def smallest_group(self) -> int:
    # A group of this size has distinct prefixes whatever the rounding: errors that remain concern
    # the fractions themselves, and are raised here.
    gaps = np.diff([0.0, *self.fractions])
    period = int(np.ceil(4.0 / self.tail_fraction))
    if np.all(gaps > 0):
      self.sizes(period * int(np.ceil(2.0 / gaps.min())))
    else:
      self.sizes(2**20)
    return next(n for n in itertools.count(2) if self.is_legal(n))

  @property
  def shaping(self) -> Shaping:
    return Shaping(self.tail_fraction, self.budget, self.scale_floor, self.positive_part)

  def subsets_of(self, num_rollouts: int) -> list[Subset]:
    """Subsets of the largest legal group of at most n rollouts, weighted for n.

    In a masked group whose size has no legal prefixes, the last rollouts of the order are outside
    every prefix; they still are in the centring.
    """
    legal = next((n for n in range(num_rollouts, 0, -1) if self.is_legal(n)), None)
    if legal is None:
      return [Subset(1, 1, 0.0, False)] * len(self.fractions)
    subsets = cancelling_subsets(
      legal,
      self.tail_fraction,
      fractions=self.fractions,
      order=self.order,
      objective=self.objective,
    )
    return [
      subset._replace(
        weight=subset.weight * (num_rollouts / legal), is_whole=subset.size == num_rollouts
      )
      for subset in subsets
    ]

  def subsets(self, group: Group) -> list[Subset]:
    num_rollouts = group.rewards.shape[-1]
    if group.where is None:
      return self.subsets_of(num_rollouts)
    table = np.array([self.subsets_of(n) for n in range(num_rollouts + 1)])
    index = group.count[..., 0]
    found = []
    for column in table.transpose(1, 2, 0):
      size, count, weight, _ = (jnp.asarray(values)[index][..., None] for values in column)
      found.append(
        Subset(
          size.astype(jnp.int32),
          count.astype(jnp.int32),
          weight.astype(group.rewards.dtype),
          bool(np.array_equal(column[0][1:], np.arange(1, num_rollouts + 1))),
        )
      )
    return found


def _descending(group: Group) -> tuple[Array, Array]:
  """Rewards sorted downwards, those that do not count last as -inf, and the order."""
  values = group.rewards if group.where is None else jnp.where(group.where, group.rewards, -jnp.inf)
  ascending, order = sort_rewards(values)
  return ascending[..., ::-1], order[..., ::-1]
