"""TEA for rewards of few levels: 0 or 1, stars from 1 to 5."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array

from tea_jax import tail
from tea_jax.advantages.influence import resampled_influence
from tea_jax.advantages.parts import centre
from tea_jax.advantages.registry import register_advantage
from tea_jax.advantages.rule import Group, GroupRule
from tea_jax.advantages.tea import SCALE_FLOOR, check_tail, smallest_tail_group


@register_advantage("tied_tea")
def tied_tea(
  *, tail_fraction: float = 0.25, budget: int = 128, scale_floor: float = SCALE_FLOOR
) -> GroupRule:
  """TEA, and where it is blind to a group, the influence under a law of levels.

  A tail that is one level, or nearly, has no scale: `tea` gives such groups zero, though some of
  their rollouts are better than others. Here they get what each level is worth for the best of N,

  A(r') - A(r) = N sum_gaps g E F^(N-1),  F ~ Beta(i, n - i) between the i-th and the next reward,

  the share F below a gap being what the group leaves open (the Bayesian bootstrap of
  `blended_influence`). With rewards of 0 and 1 and k of n right, the gap between them is worth
  N E (1 - p)^(N-1): large where a right answer is rare, and next to nothing where the best of N is
  right anyway. Both parts are influences on E[max of N], so their groups weigh alike.

  Args:
    tail_fraction, budget, scale_floor: see `tea`.

  Raises:
    ValueError: if `budget` is too small to extrapolate.

  Example:
    >>> correct = jnp.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0])
    >>> [f"{a:.2f}" for a in tied_tea(budget=16)(correct)[-3:]]
    ['-0.36', '1.09', '1.09']

  Source: own; the tail's rule is that of arXiv 2605.10716, eqs. 10 to 16.
  """
  check_tail(tail_fraction, budget, scale_floor)

  def compute(group: Group) -> Array:
    vector = tail.tail_vector(
      group.rewards, tail_fraction, where=group.where, scale_floor=scale_floor
    )
    shaped = tail.shaped_reward(group.rewards, vector, tail_fraction=tail_fraction, budget=budget)
    blind = jnp.max(shaped, -1, keepdims=True) <= 0
    levels = centre(resampled_influence(group, budget), group)
    return jnp.where(blind, levels, centre(jax.nn.relu(shaped), group))

  return GroupRule(
    "tied_tea",
    compute,
    {"tail_fraction": tail_fraction, "budget": budget, "scale_floor": scale_floor},
    minimum_rollouts=smallest_tail_group(tail_fraction),
    scale_degree=1,
  )
