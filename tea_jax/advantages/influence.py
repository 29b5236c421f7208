"""Influence of a reward on the expected best of N: exact on a pool, on a fitted tail, blended.

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
from tea_jax.advantages.tea import SCALE_FLOOR, check_tail, smallest_tail_group
from tea_jax.tail.gaussian import influence_table


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

  Example:
    >>> print(best_of_n_oracle(budget=2)(jnp.array([1.0, 2.0, 3.0, 6.0])))
    [-2.  -1.5 -0.5  4. ]

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


@register_advantage("tail_influence")
def tail_influence(
  *, tail_fraction: float = 0.25, budget: int = 128, scale_floor: float = SCALE_FLOOR
) -> GroupRule:
  """Influence of each reward on the expected best of `budget`, under the group's fitted tail.

  A_i = I_i - mean_j I_j, I_i = N (E max(r_i, M_{N-1}) - E M_N), M_k the maximum of k draws of the
  Gaussian whose upper tail matches the group's.

  `tea` differentiates the extrapolated value mu + kappa sigma; this is the advantage of the
  best-of-N oracle itself, on the fitted law.

  Args:
    tail_fraction, budget, scale_floor: see `tea`.

  Raises:
    ValueError: if `budget` is too small to extrapolate.

  Example:
    >>> rewards = jnp.array([0.0, 0.0, 1.0, 1.0, 2.0, 4.0, 5.0, 8.0])
    >>> [f"{a:.2f}" for a in tail_influence(budget=16)(rewards)[-3:]]
    ['-1.42', '-1.25', '9.86']
  """
  check_tail(tail_fraction, budget, scale_floor)

  def compute(group: Group) -> Array:
    vector = tail.tail_vector(
      group.rewards, tail_fraction, where=group.where, scale_floor=scale_floor
    )
    influence = tail.tail_influence(
      group.rewards, vector, tail_fraction=tail_fraction, budget=budget
    )
    return centre(influence, group)

  return GroupRule(
    "tail_influence",
    compute,
    {"tail_fraction": tail_fraction, "budget": budget, "scale_floor": scale_floor},
    minimum_rollouts=smallest_tail_group(tail_fraction),
    scale_degree=1,
  )


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

  Example:
    >>> [f"{a:.2f}" for a in blended_influence(budget=8)(jnp.arange(4.0))]
    ['-0.68', '-0.65', '-0.35', '1.68']

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
    resampled = centre(resampled_influence(group, budget), group)
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


def _log_shares(group: Group) -> Array:
  """log(j/n) for j = 1 ... m-1; those at j >= n multiply gaps that are 0."""
  rank = np.arange(1, group.rewards.shape[-1])
  if group.where is None:
    return jnp.asarray(np.log(rank / group.count), group.rewards.dtype)
  missing = jnp.clip(1 - rank / jnp.maximum(group.count, 1), 0, None)
  # log1p keeps the relative precision near j = n, which the power N would lose.
  return jnp.where(missing < 1, jnp.log1p(-jnp.minimum(missing, 1 - 1e-6)), 0)


def resampled_influence(group: Group, budget: int) -> Array:
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
