"""Blended influence: the best-of-N advantage averaged over three readings of the same group.

The advantage that ascends E[max of N] is the influence A(r) = N (E max(r, M_{N-1}) - E M_N), M_k
the maximum of k draws from the policy's reward distribution F. Whatever F is,

  A(r') - A(r) = N integral_r^r' F(t)^(N-1) dt,

so a rule is an answer to one question: what is F(t)^(N-1) in the gaps between a group's rewards?
m rewards leave that open, and each single answer fails somewhere: the empirical F says 0 below the
top reward when m << N, a Gaussian is wrong for bounded or bimodal rewards, one that is fitted to
the tail alone is noisy in small groups. The posterior mean over several answers is their average.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from scipy import special

from tea_jax import tail
from tea_jax.advantages.parts import centre, group_sum, sort_rewards, unsort
from tea_jax.advantages.registry import register_advantage
from tea_jax.advantages.rule import Group, GroupRule
from tea_jax.advantages.tea import SCALE_FLOOR, check_tail
from tea_jax.tail.gaussian import influence_table


@register_advantage("blended_influence")
def blended_influence(
  *,
  budget: int = 128,
  tail_fraction: float = 0.5,
  resampling_weight: float = 0.5,
  scale_floor: float = SCALE_FLOOR,
) -> GroupRule:
  """Influence of each reward on the expected best of `budget`, averaged over three fitted laws.

  A = w A_resampled + (1 - w) (A_group + A_tail) / 2, centred over the group, with the influences of

  - A_resampled: the Bayesian bootstrap. With Dirichlet(1, ..., 1) weights on the group's rewards,
    F(t) ~ Beta(i, n - i) between the i-th and the next larger reward, so that
    E F^(N-1) = Gamma(i+N-1) Gamma(n) / (Gamma(i) Gamma(n+N-1)): one static weight for each gap;
  - A_group: the Gaussian with the mean and the sample standard deviation of the group;
  - A_tail: the Gaussian that has the group's upper `tail_fraction` (`tail_influence`).

  The first needs no shape and takes over what the group can say by itself as m approaches N; the
  second is the most precise where rewards are near Gaussian; the third corrects it for skewed or
  bimodal ones. Only the group itself is used, never the batch. Adding c to the rewards changes
  nothing, multiplying them by s > 0 multiplies the advantages by s. Non-decreasing in the reward.

  Args:
    budget: N, the deployment budget; at least `tea_jax.minimum_budget(tail_fraction)`.
    tail_fraction: upper share of the group that the third law is fitted to; in (0, 0.5].
    resampling_weight: w, in [0, 1]. More for bounded rewards, less for heavy tails.
    scale_floor: smallest standard deviation of the Gaussians, in units of reward.

  Raises:
    ValueError: if `budget` is too small to extrapolate, or an argument out of range.

  Source: own; the oracle is that of arXiv 2605.10716, section 4.6. Evidence:
  `experiments/oracle_alignment.py --synthetic`.
  """
  check_tail(tail_fraction, budget, scale_floor)
  if not 0 <= resampling_weight <= 1:
    raise ValueError(
      f"resampling_weight={resampling_weight} must be in [0, 1]: it is the share of the bootstrap"
    )

  def compute(group: Group) -> Array:
    vector = tail.tail_vector(
      group.rewards, tail_fraction, where=group.where, scale_floor=scale_floor
    )
    of_tail = tail.tail_influence(group.rewards, vector, tail_fraction=tail_fraction, budget=budget)
    gaussian = centre(of_tail, group) + centre(_group_influence(group, budget, scale_floor), group)
    resampled = centre(_resampled_influence(group, budget), group)
    return resampling_weight * resampled + (1 - resampling_weight) / 2 * gaussian

  return GroupRule(
    "blended_influence",
    compute,
    {
      "budget": budget,
      "tail_fraction": tail_fraction,
      "resampling_weight": resampling_weight,
      "scale_floor": scale_floor,
    },
    scale_degree=1,
  )


def _resampled_influence(group: Group, budget: int) -> Array:
  """N (E max(r, M_{N-1}) - E max(r_(1), M_{N-1})) under the Bayesian bootstrap of the group."""
  ascending, order = sort_rewards(group.rewards)
  below = np.arange(1, ascending.shape[-1] + 1)
  # In float64, and relative to the whole group: the weights that matter are near 1.
  log_moments = special.gammaln(below + budget - 1) - special.gammaln(below)
  log_moments = jnp.asarray(log_moments - log_moments[-1], ascending.dtype)
  log_weights = log_moments[:-1]
  if group.where is not None:
    # Rollouts that do not count sort last, tied with the largest that does: their gaps are 0.
    log_weights = jnp.minimum(log_weights - log_moments[jnp.maximum(group.count, 1) - 1], 0)
  steps = budget * jnp.exp(log_weights) * jnp.diff(ascending, axis=-1)
  rises = jnp.concatenate([jnp.zeros_like(ascending[..., :1]), jnp.cumsum(steps, -1)], -1)
  return unsort(rises, order)


def _group_influence(group: Group, budget: int, scale_floor: float) -> Array:
  """The influence under the Gaussian with the group's mean and sample standard deviation."""
  deviation = centre(group.rewards, group)
  if group.where is not None:
    deviation = jnp.where(group.where, deviation, 0)
  # Divided by the largest before squaring: 1e-30 squared would be 0.
  largest = jnp.max(jnp.abs(deviation), -1, keepdims=True)
  unit = jnp.where(largest > 0, largest, 1)
  variance = group_sum((deviation / unit) ** 2, group.where) / jnp.maximum(group.count - 1, 1)
  scale = jnp.maximum(unit * jnp.sqrt(variance), scale_floor)
  deviation = jnp.maximum(deviation, influence_table(budget).lower * scale)
  return scale * tail.maximum_influence(deviation / scale, budget)
