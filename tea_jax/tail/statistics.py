"""Statistics of the upper tail of a group of rewards, and the Gaussian that they imply."""

from __future__ import annotations

import functools
import math
from fractions import Fraction
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Real
from scipy import special

from tea_jax.tail.gaussian import check_tail_fraction
from tea_jax.tail.selection import kth_largest

SCALE_FLOOR = 1e-12


class TailVector(NamedTuple):
  """What the upper tail of a group of rewards looks like: eta = (q, mu_tail, sigma_tail).

  Attributes:
    threshold: `[...]` the k-th largest reward.
    mean: `[...]` mean of the k largest.
    scale: `[...]` population (1/k) standard deviation of the k largest, positive.

  Example:
    >>> tail = TailVector(threshold=6.0, mean=6.5, scale=0.5)
    >>> tail.mean - tail.threshold
    0.5
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

  Example:
    >>> tail_count(30, 0.1)
    3
  """
  if num_rollouts < 1:
    raise ValueError(f"num_rollouts={num_rollouts} is an empty group; at least 1 is needed.")
  return math.ceil(rational_tail_fraction(tail_fraction) * num_rollouts)


def as_rewards(rewards: Real[ArrayLike, "*batch num_rollouts"]) -> Array:
  """Rewards as a floating array of at least float32, checked to hold a group axis."""
  rewards = jnp.asarray(rewards)
  if rewards.ndim < 1 or rewards.shape[-1] < 1:
    raise ValueError(
      f"rewards of shape {rewards.shape} hold no group; [..., num_rollouts >= 1] is needed."
    )
  return rewards.astype(jnp.promote_types(rewards.dtype, jnp.float32))


def tail_above(
  rewards: Float[Array, "*batch num_rollouts"],
  threshold: Float[Array, "*batch"],
  count: Float[Array, "*batch"],
) -> TailVector:
  """Mean and scale of the `count` largest rewards, given the smallest of them.

  Rewards above the threshold are known to belong; the rest of the count are copies of it. What
  shall not count is to stand at the threshold.
  """
  floor = threshold[..., None]
  excess = jnp.sum(jnp.maximum(rewards - floor, 0.0), axis=-1) / count
  # In units of the mean excess, of which no term is above `count`: squares of 1e30 or 1e-30 would
  # leave the range of float32. Two wheres: nothing is divided by 0, nor is sqrt differentiated
  # there.
  spread = excess > 0
  unit = jnp.where(spread, excess, 1.0)
  above = rewards > floor
  deviation = (rewards - floor) / unit[..., None] - 1.0
  squares = jnp.sum(jnp.where(above, jnp.square(deviation), 0.0), axis=-1)
  copies = count - jnp.sum(above.astype(rewards.dtype), axis=-1)
  variance = jnp.where(spread, (squares + copies) / count, 1.0)
  scale = jnp.where(spread, unit * jnp.sqrt(variance), 0.0)
  return TailVector(threshold, threshold + excess, scale)


@functools.partial(jax.jit, static_argnames="count")
def _tail_of_largest(rewards: Array, count: int) -> TailVector:
  threshold = kth_largest(rewards, count)
  return tail_above(rewards, threshold, jnp.full_like(threshold, count))


@functools.partial(jax.jit, static_argnames="tail_fraction")
def _tail_of_counted(rewards: Array, where: Array, tail_fraction: float) -> TailVector:
  # A table, so that the rounding of k is exact for every possible count.
  sizes = range(1, rewards.shape[1] + 1)
  counts = np.array([1] + [tail_count(size, tail_fraction) for size in sizes], np.int32)
  count = jnp.asarray(counts)[jnp.sum(where, axis=1)]
  descending = jnp.sort(jnp.where(where, rewards, -jnp.inf), axis=1, descending=True)
  threshold = jnp.take_along_axis(descending, count[:, None] - 1, axis=1)[:, 0]
  threshold = jnp.where(jnp.any(where, axis=1), threshold, 0.0)
  # A rollout that does not count stands at the threshold, where it adds nothing.
  counted = jnp.where(where, rewards, threshold[:, None])
  return tail_above(counted, threshold, count.astype(rewards.dtype))


def tail_vector(
  rewards: Real[ArrayLike, "*batch num_rollouts"],
  tail_fraction: float,
  *,
  where: Bool[ArrayLike, "*batch num_rollouts"] | None = None,
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

  Example:
    >>> threshold, mean, scale = tail_vector(jnp.arange(8.0), 0.25)
    >>> float(threshold), float(mean), float(scale)
    (6.0, 6.5, 0.5)

  Source: arXiv 2605.10716, eq. 10.
  """
  rewards = as_rewards(rewards)
  if not scale_floor > 0:
    raise ValueError(f"scale_floor={scale_floor} must be positive: it guards a division.")
  *batch, num_rollouts = rewards.shape
  rows = rewards.reshape(-1, num_rollouts)
  if where is None:
    tail = _tail_of_largest(rows, tail_count(num_rollouts, tail_fraction))
  else:
    mask = jnp.asarray(where, bool)
    chex.assert_equal_shape([rewards, mask])
    tail = _tail_of_counted(rows, mask.reshape(rows.shape), tail_fraction)
  threshold, mean, scale = (value.reshape(batch) for value in tail)
  return TailVector(threshold, mean, jnp.maximum(scale, scale_floor))


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

  Example:
    >>> loc, scale = invert_tail(tail_vector(jnp.arange(8.0), 0.25), 0.25)
    >>> print(f"{loc:.3f} {scale:.3f}")
    5.207 1.017

  Source: arXiv 2605.10716, Section 3 (the population identities of a Gaussian tail, inverted).
  """
  check_tail_fraction(tail_fraction)
  quantile = -float(special.ndtri(float(tail_fraction)))
  mills_ratio = math.exp(-0.5 * quantile**2) / math.sqrt(2.0 * math.pi) / float(tail_fraction)
  tail_variance = 1.0 + quantile * mills_ratio - mills_ratio**2
  scale = jnp.asarray(tail.scale) / math.sqrt(tail_variance)
  return jnp.asarray(tail.mean) - mills_ratio * scale, scale
