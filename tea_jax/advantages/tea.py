"""Tail-extrapolated advantages: best-of-N policy gradients for N far beyond the group size."""

from __future__ import annotations

import itertools

import jax
from jaxtyping import Array

from tea_jax import tail
from tea_jax.advantages.parts import centre
from tea_jax.advantages.registry import register_advantage
from tea_jax.advantages.rule import Group, GroupRule

SCALE_FLOOR = 1e-12


@register_advantage("tea")
def tea(
  *,
  tail_fraction: float = 0.25,
  budget: int = 128,
  positive_part: bool = True,
  scale_floor: float = SCALE_FLOOR,
) -> GroupRule:
  """Tail-extrapolated advantage: optimises the expected best of `budget` rollouts, m << budget.

  A_i = relu(psi_i) - mean_j relu(psi_j), psi the tail-shaped reward at the group's own tail vector.

  Only rewards in the upper `tail_fraction` of a group are told apart, and there the curvature kappa
  extrapolates the Gaussian tail to the budget. Bias and variance of order 1/m.

  Args:
    tail_fraction: alpha, the upper share of the group taken as tail; in (0, 0.5].
    budget: N, the deployment budget; at least `tea_jax.minimum_budget(tail_fraction)`.
    positive_part: take relu of psi, which is negative just above the threshold; False leaves the
      plug-in gradient estimator itself, centred.
    scale_floor: smallest standard deviation of the tail, in units of reward.

  Raises:
    ValueError: if `budget` is too small to extrapolate.

  Example:
    >>> print(tea(tail_fraction=0.25, budget=128)(jnp.arange(8.0)))
    [-0.5 -0.5 -0.5 -0.5 -0.5 -0.5 -0.5  3.5]

  Source: arXiv 2605.10716, eqs. 10, 11, 15, 16.
  """
  check_tail(tail_fraction, budget, scale_floor)

  def compute(group: Group) -> Array:
    vector = tail.tail_vector(
      group.rewards, tail_fraction, where=group.where, scale_floor=scale_floor
    )
    shaped = tail.shaped_reward(group.rewards, vector, tail_fraction=tail_fraction, budget=budget)
    return centre(jax.nn.relu(shaped) if positive_part else shaped, group)

  return GroupRule(
    "tea",
    compute,
    {
      "tail_fraction": tail_fraction,
      "budget": budget,
      "positive_part": positive_part,
      "scale_floor": scale_floor,
    },
    minimum_rollouts=smallest_tail_group(tail_fraction),
    scale_degree=1,
  )


def check_tail(tail_fraction: float, budget: int, scale_floor: float = SCALE_FLOOR) -> None:
  """Checks, when a rule is made, what would otherwise fail at its first call."""
  tail.tail_constants(tail_fraction, budget)
  if not scale_floor > 0:
    raise ValueError(f"scale_floor={scale_floor} must be positive: it guards a division")


def smallest_tail_group(tail_fraction: float) -> int:
  """Fewest rollouts of which the tail holds two: in a tail of one, every shaped reward is 0."""
  return next(n for n in itertools.count(2) if tail.tail_count(n, tail_fraction) >= 2)
