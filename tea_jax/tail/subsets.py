"""TEA on subsets of a group: random orders, the tail of each subset, what its members are worth.

The rule `subset_tea` trains on these numbers and `subset_averaged_gradient` measures them: both are
the one function `average_over_orders`. They differ in how the orders are drawn, which changes the
variance and not the mean: independent ones in training, pairs of an order and its reverse in the
estimator (`orders="reversed"`), which can be told to measure the trained form.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from tea_jax.tail.prefixes import cancellation_weights, compatible_prefixes
from tea_jax.tail.shaping import shaped_reward
from tea_jax.tail.statistics import TailVector, tail_above, tail_count


class Subset(NamedTuple):
  """The first `size` rollouts of an order: Python numbers, or `[..., 1]` where groups differ.

  Attributes:
    size: n_j.
    tail_count: rollouts of its tail.
    weight: w_j m / n_j, what its shaped rewards are multiplied by.
    is_whole: whether it is the whole group, the same in every order.
  """

  size: Any
  tail_count: Any
  weight: Any
  is_whole: bool


class Shaping(NamedTuple):
  """How a tail becomes a shaped reward.

  Attributes:
    tail_fraction, budget, scale_floor: see `tail_vector` and `shaped_reward`.
    positive_part: take relu of the shaped reward, as training does.
  """

  tail_fraction: float
  budget: int
  scale_floor: float
  positive_part: bool


def cancelling_subsets(
  num_rollouts: int,
  tail_fraction: float,
  *,
  fractions: Sequence[float],
  order: int,
  objective: str = "norm",
) -> list[Subset]:
  """The subset sizes of a group and the weights that cancel their bias.

  Raises:
    ValueError: see `compatible_prefixes` and `cancellation_weights`.
  """
  sizes = compatible_prefixes(num_rollouts, tail_fraction, fractions)
  weights = cancellation_weights(sizes, order, objective=objective)
  return [
    Subset(
      size,
      tail_count(size, tail_fraction),
      float(weight) * num_rollouts / size,
      size == num_rollouts,
    )
    for size, weight in zip(sizes, weights, strict=True)
  ]


def random_positions(
  key: PRNGKeyArray,
  shape: tuple[int, ...],
  where: Bool[Array, "*batch num_rollouts"] | None = None,
) -> Int[Array, "*batch num_rollouts"]:
  """Each rollout's place in a uniform random order of its group; those outside `where` come last.

  One integer sort: random bits above, the index in the low bits, so that the keys are distinct.
  """
  index_bits = max(1, math.ceil(math.log2(shape[-1])))
  index = jnp.arange(shape[-1], dtype=jnp.uint32)
  keys = (jax.random.bits(key, shape, jnp.uint32) >> 1 >> index_bits << index_bits) | index
  if where is not None:
    keys = keys | (~where).astype(jnp.uint32) << 31
  order = (jnp.sort(keys, -1) & jnp.uint32(2**index_bits - 1)).astype(jnp.int32)
  places = jnp.broadcast_to(jnp.arange(shape[-1], dtype=jnp.int32), shape)
  return jnp.put_along_axis(jnp.zeros_like(places), order, places, -1, inplace=False)


def draw_orders(
  key: PRNGKeyArray,
  shape: tuple[int, ...],
  num_orders: int,
  *,
  orders: str = "independent",
  where: Bool[Array, "*batch num_rollouts"] | None = None,
) -> Int[Array, "num_orders *batch num_rollouts"]:
  """Each rollout's place in each of P random orders of its group.

  Args:
    key: draws the orders.
    shape: `[..., num_rollouts]` of the rewards.
    num_orders: P >= 1.
    orders: "independent", as the rule `subset_tea` draws them; or "reversed", each second one the
      reverse of the one before: where a subset is half of the group the next one is the other half,
      so what is linear in the rollouts does not depend on the orders drawn.
    where: the rollouts that count, for independent orders; None for all.

  Raises:
    ValueError: if `num_orders` < 1 or `orders` is neither of the two.
  """
  if num_orders < 1:
    raise ValueError(f"num_orders={num_orders} must be at least 1.")
  if orders == "independent":
    keys = jax.random.split(key, num_orders)
    return jax.vmap(lambda each: random_positions(each, shape, where))(keys)
  if orders != "reversed" or where is not None:
    raise ValueError(f'orders={orders!r} must be "independent", or "reversed" without `where`.')
  places = jnp.broadcast_to(jnp.arange(shape[-1]), (-(-num_orders // 2), *shape))
  places = jax.random.permutation(key, places, axis=-1, independent=True)
  pairs = jnp.stack([places, shape[-1] - 1 - places], axis=1)
  return pairs.reshape(-1, *shape)[:num_orders]


def subset_tail(
  descending: Float[Array, "*batch num_rollouts"],
  member: Bool[Array, "*batch num_rollouts"],
  count: Any,
  scale_floor: float,
) -> TailVector:
  """Tail of the members of a group that is sorted downwards: its first `count` members."""
  in_tail = member & (jnp.cumsum(member, axis=-1) <= count)
  threshold = jnp.min(jnp.where(in_tail, descending, jnp.inf), axis=-1, keepdims=True)
  # A group of which nothing counts has no threshold: any finite vector, its advantages are 0.
  threshold = jnp.where(jnp.isinf(threshold), 0, threshold)
  counts = jnp.broadcast_to(jnp.asarray(count, descending.dtype), threshold.shape)
  # What is outside the tail stands at its threshold, where it adds nothing.
  tail = tail_above(jnp.where(in_tail, descending, threshold), threshold[..., 0], counts[..., 0])
  return tail._replace(scale=jnp.maximum(tail.scale, scale_floor))


def subset_values(
  descending: Float[Array, "*batch num_rollouts"],
  positions: Int[Array, "*batch num_rollouts"],
  subset: Subset,
  shaping: Shaping,
) -> Float[Array, "*batch num_rollouts"]:
  """w (m / n) psi(r; eta(S)) on the members of one subset S, 0 elsewhere."""
  member = positions < subset.size
  tail = subset_tail(descending, member, subset.tail_count, shaping.scale_floor)
  shaped = shaped_reward(
    descending, tail, tail_fraction=shaping.tail_fraction, budget=shaping.budget
  )
  if shaping.positive_part:
    shaped = jax.nn.relu(shaped)
  return subset.weight * jnp.where(member, shaped, 0)


def average_over_orders(
  descending: Float[Array, "*batch num_rollouts"],
  positions: Int[Array, "num_orders *batch num_rollouts"],
  subsets: Sequence[Subset],
  shaping: Shaping,
) -> Float[Array, "*batch num_rollouts"]:
  """What each rollout is worth: sum_j w_j (1/P) sum_p (m / n_j) 1{i in S_pj} psi(r_i; eta(S_pj)).

  Args:
    descending: `[..., m]` rewards sorted downwards.
    positions: `[P, ..., m]` places of those rewards in the P orders; S_pj are the rollouts at the
      first n_j places.
    subsets: sizes and weights.
    shaping: how a tail becomes a shaped reward.

  Returns:
    `[..., m]`; its mean times the score is the gradient.
  """
  num_orders = positions.shape[0]
  partial = [subset for subset in subsets if not subset.is_whole]

  def add_order(total, places):
    for subset in partial:
      total = total + subset_values(descending, places, subset, shaping) / num_orders
    return total, None

  total = jnp.zeros_like(descending)
  if partial:
    total, _ = jax.lax.scan(add_order, total, positions)
  for subset in subsets:
    if subset.is_whole:
      total = total + subset_values(descending, positions[0] * 0, subset, shaping)
  return total
