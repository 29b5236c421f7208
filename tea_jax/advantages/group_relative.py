"""Rules that compare a reward with its group: GRPO, RLOO, best-of-group."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array

from tea_jax.advantages.parts import centre, standardize
from tea_jax.advantages.registry import register_advantage
from tea_jax.advantages.rule import Group, GroupRule


@register_advantage("grpo")
def grpo(*, normalize: bool = False, ddof: int = 0, epsilon: float = 1e-8) -> GroupRule:
  """Group-relative advantage: optimises the expected reward of one rollout.

  A_i = r_i - mean(r), or with `normalize` A_i = (r_i - mean(r)) / (std(r) + epsilon) (GRPO-Z).

  Unnormalised, (1/m) sum_i A_i score_i has expectation (m-1)/m times the policy gradient of E[r].
  The division by the standard deviation weighs prompts by 1/spread and amplifies the noise of a
  reward model on prompts whose rollouts are alike.

  Args:
    normalize: divide by the standard deviation of the group.
    ddof: 0 for the population standard deviation, 1 for the sample one.
    epsilon: added to the standard deviation, in units of reward.

  Raises:
    ValueError: if `ddof` is not 0 or 1, or `epsilon` is negative.

  Example:
    >>> print(grpo()(jnp.array([1.0, 2.0, 3.0, 6.0])))
    [-2. -1.  0.  3.]

  Source: arXiv 2605.10716, eqs. 19, 20.
  """
  check_standardization(ddof, epsilon)

  def compute(group: Group) -> Array:
    if normalize:
      return standardize(group.rewards, group, ddof=ddof, epsilon=epsilon)
    return centre(group.rewards, group)

  return GroupRule(
    "grpo",
    compute,
    {"normalize": normalize, "ddof": ddof, "epsilon": epsilon},
    scale_degree=0 if normalize else None,
  )


@register_advantage("rloo")
def rloo() -> GroupRule:
  """Leave-one-out baseline: an unbiased policy gradient of the expected reward.

  A_i = r_i - mean_{j != i} r_j = m/(m-1) (r_i - mean(r)).

  Example:
    >>> print(rloo()(jnp.array([0.0, 3.0, 3.0, 6.0])))
    [-4.  0.  0.  4.]

  Source: arXiv 2402.14740, section 3 (the estimator of Kool et al., 2019).
  """

  def compute(group: Group) -> Array:
    centred = centre(group.rewards, group)
    return centred * (group.count / jnp.maximum(group.count - 1, 1))

  return GroupRule("rloo", compute)


@register_advantage("bon_max_mean")
def bon_max_mean() -> GroupRule:
  """Only the best rollout learns, against the mean: A_best = r_best - mean(r), else 0.

  Ties at the top: the first in the group. Not an unbiased estimator of a known objective.

  Example:
    >>> print(bon_max_mean()(jnp.array([1.0, 2.0, 3.0, 6.0])))
    [0. 0. 0. 3.]

  Source: arXiv 2605.10716, eq. 21 (after arXiv 2510.23393).
  """

  def compute(group: Group) -> Array:
    return jnp.where(_is_best(group), centre(group.rewards, group), 0)

  return GroupRule("bon_max_mean", compute)


@register_advantage("bon_max_second")
def bon_max_second() -> GroupRule:
  """Only the best rollout learns, against the runner-up: A_best = r_(m) - r_(m-1), else 0.

  sum_i A_i score_i is an exactly unbiased gradient of E[max of m]; under a trainer that averages
  over rollouts it is that gradient times 1/m. A tie at the top gives 0.

  Example:
    >>> print(bon_max_second()(jnp.array([1.0, 2.0, 3.0, 5.0])))
    [0. 0. 0. 2.]

  Source: arXiv 2605.10716, eq. 22 (after arXiv 2510.23393).
  """

  def compute(group: Group) -> Array:
    best = _is_best(group)
    counted = group.rewards if group.where is None else _or_lowest(group)
    second = jnp.max(jnp.where(best, -jnp.inf, counted), -1, keepdims=True)
    return jnp.where(best, group.rewards - second, 0)

  return GroupRule("bon_max_second", compute)


def check_standardization(ddof: int, epsilon: float) -> None:
  """Checks the arguments of `parts.standardize`."""
  if ddof not in (0, 1):
    raise ValueError(f"ddof={ddof} must be 0 (population) or 1 (sample)")
  if not epsilon >= 0:
    raise ValueError(f"epsilon={epsilon} must not be negative")


def _or_lowest(group: Group) -> Array:
  """Rewards with those that do not count below all others."""
  if group.where is None:
    return group.rewards
  return jnp.where(group.where, group.rewards, -jnp.inf)


def _is_best(group: Group) -> Array:
  """`[..., m]`, True at the first of the largest rewards."""
  best = jnp.argmax(_or_lowest(group), -1)
  return jax.nn.one_hot(best, group.rewards.shape[-1], dtype=bool)
