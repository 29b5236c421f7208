"""Compute-aligned training: group-relative advantages times the value of a sample at test time.

The advantage is made of the raw rewards first and weighted after: standardising weighted rewards
would cancel the weight of a prompt. The weights are those of `tea_jax.strategies`; what the rules
share is in `aligned_options`, tracked statistics in `tracking`.
"""

from __future__ import annotations

from typing import Literal, get_args

import jax.numpy as jnp
from jaxtyping import Array

from tea_jax.advantages.aligned_options import (
  AlignedOptions,
  WeightNormalization,
  check_laplace,
  log_success_rate,
  weighted_advantage,
)
from tea_jax.advantages.parts import count_below
from tea_jax.advantages.registry import register_advantage
from tea_jax.advantages.rule import Group, GroupRule
from tea_jax.advantages.tracking import quantile_tracker, threshold_tracker
from tea_jax.advantages.votes import votes_to_win
from tea_jax.strategies import best_of_n, majority, pass_at_n
from tea_jax.strategies.strategy import log_complement

Quantile = Literal["strict", "rank", "laplace", "tracked"]


@register_advantage("cat_best_of_n")
def cat_best_of_n(
  *,
  budget: int = 128,
  quantile: Quantile = "strict",
  normalize: bool = True,
  weight_clip: float | None = None,
  weight_normalization: WeightNormalization = "group",
  silence_penalty: float = 0.0,
  buffer_capacity: int = 4000,
  decay: float = 1.0,
  smoothing: float = 1.0,
  ddof: int = 0,
  epsilon: float = 1e-8,
) -> GroupRule:
  """Best-of-N weighting: A_i = w_i (r_i - mean(r)) / std(r), w_i = N q_i^(N-1) over its mean.

  q_i is the share of rewards strictly below r_i. Budget 1 is GRPO-Z; for N >> m all weight is on
  the best rollout.

  Args:
    budget: N, the deployment budget.
    quantile: "strict" c / m, c the rewards of the group strictly below; "rank" (c + 1) / (m + 1);
      "laplace" (c + 1) / (m + 2); "tracked" the given `quantiles`, over the rewards of recent steps
      (for one prompt or rewards comparable across prompts), see `GroupRule.update`.
    normalize: divide the advantage by the group's standard deviation.
    weight_clip: largest weight, before normalisation; None for no bound.
    weight_normalization: "none", "group" or "batch" (mean 1 over all rollouts of the call).
    silence_penalty: taken from the advantage of every rollout, before weighting, if all rewards of
      the group are 0.
    buffer_capacity, decay, smoothing: of the tracked quantiles, see `reward_quantiles`.
    ddof, epsilon: see `grpo`.

  Raises:
    ValueError: for arguments out of range, or a `silence_penalty` that every weight would cancel.

  Example:
    >>> print(cat_best_of_n(budget=2, normalize=False)(jnp.array([1.0, 2.0, 6.0])))
    [-0. -1.  6.]

  Source: arXiv 2605.10716, eqs. 26, 27; arXiv 2604.24957, eqs. 58, 80, 105-108.
  """
  options = AlignedOptions(
    normalize, weight_clip, weight_normalization, silence_penalty, ddof, epsilon
  )
  options.check(budget)
  if quantile not in get_args(Quantile):
    raise ValueError(f"quantile={quantile!r} must be one of {get_args(Quantile)}")
  if silence_penalty and quantile == "strict" and budget > 1:
    raise ValueError(
      f"silence_penalty={silence_penalty} has no effect with quantile='strict', which gives equal "
      "rewards weight 0; use quantile='laplace'"
    )
  strategy = best_of_n(budget)

  def compute(group: Group) -> Array:
    if quantile == "tracked":
      assert group.quantiles is not None
      share = group.quantiles.astype(group.rewards.dtype)
    else:
      below = count_below(group)
      extra, total = {"strict": (0, 0), "rank": (1, 1), "laplace": (1, 2)}[quantile]
      share = (below + extra) / jnp.maximum(group.count + total, 1)
    log_share = jnp.log(jnp.clip(share, 0, 1))
    return weighted_advantage(
      group, strategy.log_weight(log_complement(log_share), log_share), options
    )

  tracked = quantile == "tracked"
  tracker = quantile_tracker(capacity=buffer_capacity, decay=decay, smoothing=smoothing)
  return GroupRule(
    "cat_best_of_n",
    compute,
    {
      "budget": budget,
      "quantile": quantile,
      "buffer_capacity": buffer_capacity,
      "decay": decay,
      "smoothing": smoothing,
      **options._asdict(),
    },
    needs=("quantiles",) if tracked else (),
    scale_degree=0 if normalize else 1,
    tracker=tracker if tracked else None,
  )


@register_advantage("cat_pass_at_n")
def cat_pass_at_n(
  *,
  budget: int = 128,
  probability: Literal["sequence", "group"] = "sequence",
  log_weighted: bool = True,
  laplace: float = 1.0,
  success_threshold: float = 0.5,
  normalize: bool = True,
  weight_clip: float | None = 50.0,
  weight_normalization: WeightNormalization = "none",
  silence_penalty: float = 0.0,
  ddof: int = 0,
  epsilon: float = 1e-8,
) -> GroupRule:
  """Pass@N weighting: A_i = w_i (r_i - mean(r)) / std(r), for rewards that say right or wrong.

  raw w = N (1 - p)^(N-1); log-weighted w = N p (1 - p)^(N-1) / (1 - (1 - p)^N), bounded by 1.

  With `probability="sequence"`, p is the probability of each whole completion. For completions of
  more than a few tokens that is below 1e-30, and every weight is 1 (log-weighted) or N (raw): the
  published rule, but a constant. A wrong completion that is rare keeps a weight near 1 even where
  most samples of its prompt are right. `probability="group"` takes the share of correct rollouts,
  which leaves such prompts alone.

  Args:
    budget: N, the number of samples at deployment.
    probability: "sequence", which needs `logprobs`, or "group".
    log_weighted: the weight of log S (bounded) instead of S (large variance at small p).
    laplace: pseudo-count of the group's share, (c + laplace) / (m + 2 laplace).
    success_threshold: rewards above it count as correct.
    normalize, weight_clip, weight_normalization, silence_penalty: see `cat_best_of_n`.
    ddof, epsilon: see `grpo`.

  Raises:
    ValueError: for arguments out of range.

  Example:
    >>> rule = cat_pass_at_n(budget=4, probability="group")
    >>> [f"{a:.2f}" for a in rule(jnp.array([1.0, 0.0, 0.0, 0.0]))]
    ['0.85', '-0.28', '-0.28', '-0.28']

  Source: arXiv 2604.24957, Table 1, eqs. 75, 79, 83, 97, 103.
  """
  options = AlignedOptions(
    normalize, weight_clip, weight_normalization, silence_penalty, ddof, epsilon
  )
  options.check(budget)
  if probability not in ("sequence", "group"):
    raise ValueError(f"probability={probability!r} must be 'sequence' or 'group'")
  check_laplace(laplace)
  strategy = pass_at_n(budget)

  def compute(group: Group) -> Array:
    if probability == "sequence":
      assert group.logprobs is not None
      log_success, log_failure = group.logprobs.astype(group.rewards.dtype), None
      log_success = jnp.minimum(log_success, 0)
    else:
      log_success, log_failure = log_success_rate(group, laplace, success_threshold)
    weight = strategy.log_supervised_weight if log_weighted else strategy.log_weight
    return weighted_advantage(group, weight(log_success, log_failure), options)

  return GroupRule(
    "cat_pass_at_n",
    compute,
    {
      "budget": budget,
      "probability": probability,
      "log_weighted": log_weighted,
      "laplace": laplace,
      "success_threshold": success_threshold,
      **options._asdict(),
    },
    needs=("logprobs",) if probability == "sequence" else (),
    scale_degree=0 if normalize else 1,
  )


@register_advantage("cat_majority")
def cat_majority(
  *,
  budget: int = 8,
  threshold: Literal["dynamic", "tracked"] | int = "dynamic",
  log_weighted: bool = False,
  laplace: float = 1.0,
  success_threshold: float = 0.5,
  normalize: bool = True,
  weight_clip: float | None = 10.0,
  weight_normalization: WeightNormalization = "batch",
  silence_penalty: float = 0.0,
  decay: float = 0.9,
  ddof: int = 0,
  epsilon: float = 1e-8,
) -> GroupRule:
  """Majority-vote weighting: A_i = w (r_i - mean(r)) / std(r), one w a prompt.

  w = N C(N-1, k-1) p^(k-1) (1-p)^(N-k), the value of one more vote where k of N win and
  p = (c + laplace) / (m + 2 laplace) is the share of correct rollouts: large at the tipping point.

  Args:
    budget: N, the number of votes at deployment.
    threshold: k: "dynamic" beats the group's most frequent wrong answer (needs `answers`);
      "tracked" is its moving average over steps, see `GroupRule.update`; or a number. 1 is Pass@N.
    log_weighted: the weight of log S instead of S.
    laplace, success_threshold: see `cat_pass_at_n`.
    normalize, weight_clip, weight_normalization, silence_penalty: see `cat_best_of_n`.
    decay: of the moving average.
    ddof, epsilon: see `grpo`.

  Raises:
    ValueError: for arguments out of range.

  Example:
    >>> rule = cat_majority(budget=3, weight_normalization="none")
    >>> print(rule(jnp.array([1.0, 0.0, 0.0, 1.0]), answers=jnp.array([7, 3, 4, 7])))
    [ 1.5 -1.5 -1.5  1.5]

  Source: arXiv 2604.24957, Table 1, section B.7.2, eqs. 79, 81, 103.
  """
  options = AlignedOptions(
    normalize, weight_clip, weight_normalization, silence_penalty, ddof, epsilon
  )
  options.check(budget)
  check_laplace(laplace)
  if threshold not in ("dynamic", "tracked") and not (
    isinstance(threshold, int) and 1 <= threshold <= budget
  ):
    raise ValueError(
      f"threshold={threshold!r} must be 'dynamic', 'tracked' or a number of votes, 1 to {budget}"
    )

  def compute(group: Group) -> Array:
    if threshold == "dynamic":
      assert group.answers is not None
      votes = votes_to_win(
        group.rewards,
        group.answers,
        budget=budget,
        success_threshold=success_threshold / group.scale,
        where=group.where,
      )[..., None]
    elif threshold == "tracked":
      assert group.thresholds is not None
      votes = jnp.round(group.thresholds).astype(jnp.int32)[..., None]
      votes = jnp.broadcast_to(votes, (*group.rewards.shape[:-1], 1))
    else:
      votes = jnp.full((*group.rewards.shape[:-1], 1), threshold, jnp.int32)
    log_success, log_failure = log_success_rate(group, laplace, success_threshold)
    strategy = majority(budget, votes)
    weight = strategy.log_supervised_weight if log_weighted else strategy.log_weight
    return weighted_advantage(group, weight(log_success, log_failure), options)

  needs = {"dynamic": ("answers",), "tracked": ("thresholds",)}
  tracker = threshold_tracker(budget=budget, success_threshold=success_threshold, decay=decay)
  return GroupRule(
    "cat_majority",
    compute,
    {
      "budget": budget,
      "threshold": threshold,
      "log_weighted": log_weighted,
      "laplace": laplace,
      "success_threshold": success_threshold,
      "decay": decay,
      **options._asdict(),
    },
    needs=needs.get(threshold, ()) if isinstance(threshold, str) else (),
    scale_degree=0 if normalize else 1,
    tracker=tracker if threshold == "tracked" else None,
  )
