"""TEA with its bias cancelled: several sub-groups of one group, combined."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from tea_jax import tail
from tea_jax.advantages.parts import centre, random_positions, sort_rewards, unsort
from tea_jax.advantages.registry import register_advantage
from tea_jax.advantages.rule import Group, GroupRule
from tea_jax.advantages.tea import SCALE_FLOOR, check_tail


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
    positions = random_positions(group.key if shuffle else None, group)
    positions = jnp.take_along_axis(positions, descending, -1)
    total = jnp.zeros_like(ordered)
    for part in plan.parts(group):
      total = total + _part_advantage(plan, part, ordered, positions)
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
    # The whole group is the same set in every order.
    whole = [part for part in plan.parts(group) if part.is_whole]
    partial = [part for part in plan.parts(group) if not part.is_whole]

    def one_order(total: Array, key: Array) -> tuple[Array, None]:
      positions = jnp.take_along_axis(random_positions(key, group), descending, -1)
      for part in partial:
        total = total + _part_advantage(plan, part, ordered, positions) / num_orders
      return total, None

    total = jnp.zeros_like(ordered)
    if partial:
      total, _ = jax.lax.scan(one_order, total, jax.random.split(group.key, num_orders))
    everyone = jnp.zeros(ordered.shape, jnp.int32)
    for part in whole:
      total = total + _part_advantage(plan, part, ordered, everyone)
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


class _Part(NamedTuple):
  """One sub-group size: Python numbers, or `[..., 1]` arrays where the groups' sizes differ."""

  size: Any
  tail_count: Any
  weight: Any
  is_whole: bool


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

  def row(self, num_rollouts: int) -> list[tuple[int, int, float]]:
    """(size, tail count, weight * n / size) of the largest legal group of at most n rollouts.

    In a masked group whose size has no legal prefixes, the last rollouts of the order are outside
    every prefix; they still are in the centring.
    """
    legal = next((n for n in range(num_rollouts, 0, -1) if self.is_legal(n)), None)
    if legal is None:
      return [(1, 1, 0.0)] * len(self.fractions)
    sizes = self.sizes(legal)
    weights = tail.cancellation_weights(sizes, self.order, objective=self.objective)
    return [
      (size, tail.tail_count(size, self.tail_fraction), float(weight) * num_rollouts / size)
      for size, weight in zip(sizes, weights, strict=True)
    ]

  def parts(self, group: Group) -> list[_Part]:
    num_rollouts = group.rewards.shape[-1]
    if group.where is None:
      return [_Part(*entry, entry[0] == num_rollouts) for entry in self.row(num_rollouts)]
    table = np.array([self.row(n) for n in range(num_rollouts + 1)])
    index = group.count[..., 0]
    parts = []
    for column in table.transpose(1, 2, 0):
      size, count, weight = (jnp.asarray(values)[index][..., None] for values in column)
      parts.append(
        _Part(
          size.astype(jnp.int32),
          count.astype(jnp.int32),
          weight.astype(group.rewards.dtype),
          bool(np.array_equal(column[0][1:], np.arange(1, num_rollouts + 1))),
        )
      )
    return parts


def _descending(group: Group) -> tuple[Array, Array]:
  """Rewards sorted downwards, those that do not count last as -inf, and the order."""
  values = group.rewards if group.where is None else jnp.where(group.where, group.rewards, -jnp.inf)
  ascending, order = sort_rewards(values)
  return ascending[..., ::-1], order[..., ::-1]


def _part_advantage(plan: _Plan, part: _Part, ordered: Array, positions: Array) -> Array:
  """w (m / n) relu(psi) on the members of one sub-group, 0 elsewhere, in the sorted order."""
  member = positions < part.size
  vector = _member_tail(ordered, member, part.tail_count, plan.scale_floor)
  shaped = tail.shaped_reward(ordered, vector, tail_fraction=plan.tail_fraction, budget=plan.budget)
  if plan.positive_part:
    shaped = jax.nn.relu(shaped)
  return part.weight * jnp.where(member, shaped, 0)


def _member_tail(ordered: Array, member: Array, count: Any, scale_floor: float) -> tail.TailVector:
  """Tail vector of the members of a group sorted downwards: its first `count` members."""
  in_tail = member & (jnp.cumsum(member, -1) <= count)
  threshold = jnp.min(jnp.where(in_tail, ordered, jnp.inf), -1, keepdims=True)
  excess = jnp.where(in_tail, ordered - threshold, 0)
  mean_excess = jnp.sum(excess, -1, keepdims=True) / count
  deviation = jnp.where(in_tail, excess - mean_excess, 0)
  largest = jnp.max(jnp.abs(deviation), -1, keepdims=True)
  # Divided by the largest first: squares of tiny deviations would underflow.
  unit = jnp.where(largest > 0, largest, 1)
  variance = jnp.sum((deviation / unit) ** 2, -1, keepdims=True) / count
  scale = jnp.maximum(unit * jnp.sqrt(variance), scale_floor)
  # A group of which nothing counts has no threshold: any finite vector, its advantages are 0.
  threshold = jnp.where(jnp.isinf(threshold), 0, threshold)
  return tail.TailVector(*(x[..., 0] for x in (threshold, threshold + mean_excess, scale)))
