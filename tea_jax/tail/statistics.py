"""Statistics of the upper tail of a group of rewards, and the Gaussian that they imply."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from scipy import special

from tea_jax.tail.gaussian import check_tail_fraction

SCALE_FLOOR = 1e-12


class TailVector(NamedTuple):
  """What the upper tail of a group of rewards looks like: eta = (q, mu_tail, sigma_tail).

  Attributes:
    threshold: `[...]` the k-th largest reward.
    mean: `[...]` mean of the k largest.
    scale: `[...]` population (1/k) standard deviation of the k largest, positive.
  """

  threshold: Float[Array, "*batch"]
  mean: Float[Array, "*batch"]
  scale: Float[Array, "*batch"]


def rational_tail_fraction(tail_fraction: float) -> Fraction:
  """The tail fraction as the rational number that was meant: 0.1 is 1/10, not its binary image."""
  check_tail_fraction(tail_fraction)
  return Fraction(tail_fraction).limit_denominator()


def tail_count(num_rollouts: int, tail_fraction: float) -> int:
  """k = ceil(tail_fraction * num_rollouts), the size of the tail, in exact rational arithmetic.

  Args:
    num_rollouts: rollouts in the group, >= 1.
    tail_fraction: alpha, in (0, 0.5].

  Returns:
    k; 3 for 0.1 of 30, where floating point gives 4.
  """
  if num_rollouts < 1:
    raise ValueError(f"num_rollouts={num_rollouts} is an empty group; at least 1 is needed.")
  return math.ceil(rational_tail_fraction(tail_fraction) * num_rollouts)


def as_rewards(rewards: Float[Array, "*batch num_rollouts"]) -> Array:
  """Rewards as a floating array of at least float32, checked to hold a group axis."""
  rewards = jnp.asarray(rewards)
  if rewards.ndim < 1 or rewards.shape[-1] < 1:
    raise ValueError(
      f"rewards of shape {rewards.shape} hold no group; [..., num_rollouts >= 1] is needed."
    )
  return rewards.astype(jnp.promote_types(rewards.dtype, jnp.float32))


def _scale_of(top: Array, threshold: Array, mean_excess: Array, counted: Array, count: Array):
  """Population standard deviation of the counted values, without squaring their magnitude."""
  deviation = jnp.where(counted, top - threshold[..., None] - mean_excess[..., None], 0.0)
  # Divided by the largest first: squares of 1e30 or 1e-30 would leave the range of float32.
  largest = jax.lax.stop_gradient(jnp.max(jnp.abs(deviation), axis=-1))
  unit = jnp.where(largest > 0, largest, 1.0)
  variance = jnp.sum(jnp.square(deviation / unit[..., None]), axis=-1) / count
  # Two wheres: the derivative of sqrt at 0 is infinite and must not be formed.
  positive = variance > 0
  return jnp.where(positive, unit * jnp.sqrt(jnp.where(positive, variance, 1.0)), 0.0)


def tail_vector(
  rewards: Float[Array, "*batch num_rollouts"],
  tail_fraction: float,
  *,
  where: Bool[Array, "*batch num_rollouts"] | None = None,
  scale_floor: float = SCALE_FLOOR,
) -> TailVector:
  """Threshold, mean and scale of the k = ceil(tail_fraction * num_rollouts) largest rewards.

  Invariant to the order of the rollouts and to which of tied rewards is taken; equivariant to
  shifts and to positive scalings (the scale wherever it is above its floor). A group of one value
  gives that value exactly as threshold and mean.

  Args:
    rewards: `[..., num_rollouts]` finite rewards of a group; computed in at least float32.
    tail_fraction: alpha, the upper share taken as tail; in (0, 0.5]; static.
    where: `[..., num_rollouts]` True for the rollouts that count, None for all; k then follows
      the count of each group. A group of which none counts gives (0, 0, scale_floor).
    scale_floor: smallest scale, in units of reward: a guard against 0/0, not a regulariser; within
      a group, shaped rewards are bounded however small the scale.

  Returns:
    `TailVector` of `[...]` arrays in float32, or float64 for float64 rewards.

  Raises:
    ValueError: if there is no group axis, or `tail_fraction` or `scale_floor` out of range.

  Source: arXiv 2605.10716, eq. 10.
  """
  rewards = as_rewards(rewards)
  if not scale_floor > 0:
    raise ValueError(f"scale_floor={scale_floor} must be positive: it guards a division.")
  num_rollouts = rewards.shape[-1]
  if where is None:
    count = tail_count(num_rollouts, tail_fraction)
    top = jax.lax.top_k(rewards, count)[0]
    counted = jnp.ones_like(top, dtype=bool)
    threshold = top[..., -1]
    divisor = jnp.asarray(count, rewards.dtype)
  else:
    chex.assert_equal_shape([rewards, where])
    # A table, so that the rounding of k is exact for every possible count.
    counts = [0] + [tail_count(n, tail_fraction) for n in range(1, num_rollouts + 1)]
    count = jnp.asarray(np.array(counts, np.int32))[jnp.sum(where, axis=-1)]
    top = jnp.sort(jnp.where(where, rewards, -jnp.inf), axis=-1, descending=True)
    counted = jnp.arange(num_rollouts) < count[..., None]
    top = jnp.where(counted, top, 0.0)
    last = jnp.maximum(count - 1, 0)[..., None]
    threshold = jnp.take_along_axis(top, last, axis=-1)[..., 0]
    divisor = jnp.maximum(count, 1).astype(rewards.dtype)

  excess = jnp.where(counted, top - threshold[..., None], 0.0)
  mean_excess = jnp.sum(excess, axis=-1) / divisor
  scale = _scale_of(top, threshold, mean_excess, counted, divisor)
  return TailVector(threshold, threshold + mean_excess, jnp.maximum(scale, scale_floor))


def invert_tail(
  tail: TailVector, tail_fraction: float
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
  """Location and scale of the Gaussian whose upper tail has the mean and scale of `tail`.

  scale = sigma_tail / sqrt(delta), loc = mu_tail - lambda * scale.

  Args:
    tail: `TailVector` of `[...]` arrays; the threshold is not used.
    tail_fraction: alpha, the upper share that was taken as tail; in (0, 0.5].

  Returns:
    `(loc, scale)`, each `[...]`, in units of reward.

  Source: arXiv 2605.10716, Section 3 (the population identities of a Gaussian tail, inverted).
  """
  check_tail_fraction(tail_fraction)
  quantile = -float(special.ndtri(float(tail_fraction)))
  mills_ratio = math.exp(-0.5 * quantile**2) / math.sqrt(2.0 * math.pi) / float(tail_fraction)
  tail_variance = 1.0 + quantile * mills_ratio - mills_ratio**2
  scale = tail.scale / math.sqrt(tail_variance)
  return tail.mean - mills_ratio * scale, scale
