"""What the compute-aligned rules share: options, their checks, and how a weight is applied.

Source: arXiv 2604.24957, eqs. 58, 75, 81, 97, 106.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import jax.numpy as jnp
from jaxtyping import Array, Float

from tea_jax.advantages.group_relative import check_standardization
from tea_jax.advantages.parts import centre, group_sum, standardize
from tea_jax.advantages.rule import Group

WeightNormalization = Literal["none", "group", "batch"]


class AlignedOptions(NamedTuple):
  """What the three rules share."""

  normalize: bool
  weight_clip: float | None
  weight_normalization: WeightNormalization
  silence_penalty: float
  ddof: int
  epsilon: float

  def check(self, budget: int) -> None:
    if budget != int(budget) or budget < 1:
      raise ValueError(f"budget={budget} must be a positive integer")
    if self.weight_clip is not None and not self.weight_clip > 0:
      raise ValueError(f"weight_clip={self.weight_clip} must be positive, or None for no bound")
    if self.weight_normalization not in get_args(WeightNormalization):
      raise ValueError(
        f"weight_normalization={self.weight_normalization!r} must be one of "
        f"{get_args(WeightNormalization)}"
      )
    if not 0 <= self.silence_penalty < math.inf:
      raise ValueError(f"silence_penalty={self.silence_penalty} must not be negative")
    check_standardization(self.ddof, self.epsilon)


def weighted_advantage(group: Group, log_weights: Array, options: AlignedOptions) -> Array:
  """Advantage of the raw rewards, then the penalty of a silent group, then the weight."""
  if options.normalize:
    advantages = standardize(group.rewards, group, ddof=options.ddof, epsilon=options.epsilon)
  else:
    advantages = centre(group.rewards, group)
  if options.silence_penalty:
    silent = group_sum(group.rewards != 0, group.where) == 0
    advantages = advantages - jnp.where(silent, options.silence_penalty, 0)
  weights = aligned_weights(
    log_weights,
    group.rewards.shape,
    where=group.where,
    clip=options.weight_clip,
    normalization=options.weight_normalization,
  )
  return advantages * weights


def check_laplace(laplace: float) -> None:
  if not 0 <= laplace < math.inf:
    raise ValueError(f"laplace={laplace} must not be negative; 1 is Laplace's rule")


def log_success_rate(group: Group, laplace: float, success_threshold: float) -> tuple[Array, Array]:
  """log p and log(1 - p), `[..., 1]`, of the smoothed share of correct rollouts."""
  correct = group_sum(group.rewards > success_threshold / group.scale, group.where)
  total = jnp.log(jnp.maximum(group.count, 1) + 2 * laplace).astype(group.rewards.dtype)
  wrong = group.count - correct
  dtype = group.rewards.dtype
  return jnp.log((correct + laplace).astype(dtype)) - total, (
    jnp.log((wrong + laplace).astype(dtype)) - total
  )


def aligned_weights(
  log_weights: Float[Array, "*batch num_rollouts_or_1"],
  shape: tuple[int, ...],
  *,
  where: Array | None = None,
  clip: float | None = None,
  normalization: WeightNormalization = "none",
) -> Float[Array, "*batch num_rollouts"]:
  """Weights from their logarithms: clipped first, then divided by their mean.

  Args:
    log_weights: `[..., num_rollouts]`, or `[..., 1]` for one weight a prompt.
    shape: of the rewards.
    where: `[..., num_rollouts]`, the rollouts that count in the mean.
    clip: largest weight, None for no bound.
    normalization: "none"; "group" divides by the mean over the group, which cancels a weight of the
      prompt; "batch" by the mean over every rollout of every group in the call, which keeps their
      ratios. A batch of one prompt with one weight keeps it as it is.

  Returns:
    `shape`, not negative; weights that are all 0 stay 0.

  Source: arXiv 2604.24957, eqs. 81, 106.
  """
  if clip is not None:
    log_weights = jnp.minimum(log_weights, math.log(clip))
  per_prompt = log_weights.shape[-1] == 1 and shape[-1] > 1
  alone = per_prompt and math.prod(shape[:-1]) == 1
  if normalization == "none" or (normalization == "batch" and alone):
    return jnp.broadcast_to(jnp.exp(log_weights), shape)
  log_weights = jnp.broadcast_to(log_weights, shape)
  counts = jnp.ones(shape, bool) if where is None else where
  log_weights = jnp.where(counts, log_weights, -jnp.inf)
  axes = -1 if normalization == "group" else tuple(range(len(shape)))
  # The largest is divided out first: N q^(N-1) underflows for every q far enough below 1.
  largest = jnp.max(log_weights, axes, keepdims=True)
  weights = jnp.exp(log_weights - jnp.where(jnp.isneginf(largest), 0, largest))
  total = jnp.sum(weights, axes, keepdims=True)
  number = jnp.sum(counts, axes, keepdims=True)
  return weights * number / jnp.where(total > 0, total, 1)
