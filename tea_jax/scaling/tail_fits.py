"""Fits of an upper tail to the rewards of a few rollouts: Gaussian and generalized Pareto."""

from __future__ import annotations

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Real
from scipy import special

from tea_jax.tail.statistics import as_rewards, rational_tail_fraction

# The shape of a generalized Pareto tail from k rewards is averaged with that of a Gaussian tail,
# which counts as so many rewards: alone, its standard error at k = 10 is about 0.5.
_PRIOR_COUNT = 30.0
LARGEST_SHAPE = 0.5


class GaussianTail(NamedTuple):
  """The Gaussian whose upper tail looks like that of the rewards.

  Attributes:
    loc, scale: `[...]` its mean and standard deviation; (largest reward, 0) without spread.
  """

  loc: Float[Array, "*batch"]
  scale: Float[Array, "*batch"]


class ParetoTail(NamedTuple):
  """A generalized Pareto law above a threshold.

  P(r - threshold > y | r > threshold) = (1 + shape y / scale)^(-1 / shape)

  Attributes:
    threshold, scale, shape: `[...]`; shape < 0 has an upper end, > 0 is heavier than exponential.
  """

  threshold: Float[Array, "*batch"]
  scale: Float[Array, "*batch"]
  shape: Float[Array, "*batch"]


class UpperTail(NamedTuple):
  """Rewards in ascending order, those that do not count first, and their upper tail.

  `excess` is in units of `unit`, the largest excess over the threshold, so that squares stay in
  range; `regular` says whether there are two different rewards in the tail.
  """

  ascending: Array
  counted: Array
  in_tail: Array
  threshold: Array
  largest: Array
  unit: Array
  excess: Array
  regular: Array


def fit_gaussian_tail(
  rewards: Real[ArrayLike, "*batch num_rollouts"],
  *,
  tail_fraction: float = 0.2,
  where: Bool[ArrayLike, "*batch num_rollouts"] | None = None,
) -> GaussianTail:
  """Inverts the moments of a truncated normal.

  scale = sqrt(var(tail) / delta),  loc = mean(tail) - lambda scale,  tail = {r >= threshold}

  The threshold is the upper alpha quantile by linear interpolation, ties belong to the tail, the
  variance is unbiased (1/(k-1)). `tail.invert_tail` inverts exactly k rewards and 1/k instead.

  Args:
    rewards, tail_fraction, where: see `predict_best_of_n`.

  Source: arXiv 2602.01485, section 3, and its released code.
  """
  tail = upper_tail(*rewards_and_mask(rewards, where), float(tail_fraction))
  return gaussian_of_tail(tail, float(tail_fraction))


def fit_pareto_tail(
  rewards: Real[ArrayLike, "*batch num_rollouts"],
  *,
  tail_fraction: float = 0.2,
  where: Bool[ArrayLike, "*batch num_rollouts"] | None = None,
) -> ParetoTail:
  """Generalized Pareto law of the excesses by probability-weighted moments.

  a_0 = mean excess, a_1 = E[excess (1 - F)], raw shape = 2 - a_0 / (a_0 - 2 a_1). The shape of k
  rewards is averaged with the Gaussian tail's (-0.23 at alpha = 0.2), which counts as 30, kept in
  [-0.5, 0.5], and scale = a_0 (1 - shape) keeps the mean excess.

  Args:
    rewards, tail_fraction, where: see `predict_best_of_n`.

  Source: Hosking and Wallis, Technometrics 29 (1987), eq. 6; the shrinkage is ours.
  """
  tail = upper_tail(*rewards_and_mask(rewards, where), float(tail_fraction))
  return pareto_of_tail(tail, float(tail_fraction))


def rewards_and_mask(
  rewards: Real[ArrayLike, "*batch num_rollouts"],
  where: Bool[ArrayLike, "*batch num_rollouts"] | None,
) -> tuple[Array, Array]:
  """Floating rewards, and which of them count."""
  rewards = as_rewards(rewards)
  mask = jnp.ones(rewards.shape, bool) if where is None else jnp.asarray(where, bool)
  chex.assert_equal_shape([rewards, mask])
  return rewards, mask


@functools.partial(jax.jit, static_argnums=2)
def upper_tail(rewards: Array, mask: Array, tail_fraction: float) -> UpperTail:
  """Sorts the rewards `[..., m]` that count; marks those at or above the upper alpha quantile."""
  size = rewards.shape[-1]
  ascending = jnp.sort(jnp.where(mask, rewards, -jnp.inf), axis=-1)
  count = jnp.sum(mask, axis=-1)
  rank = jnp.arange(size) - (size - count[..., None])
  counted = rank >= 0
  # Where the quantile lies among n rewards, exactly: rounding must not move it past a reward.
  keep = 1 - rational_tail_fraction(tail_fraction)
  places = [keep * max(n - 1, 0) for n in range(size + 1)]
  below = jnp.asarray(np.array([int(place) for place in places]))[count]
  share = jnp.asarray(np.array([float(place % 1) for place in places]), ascending.dtype)[count]
  first = jnp.minimum(size - count + below, size - 1)
  pair = jnp.stack([first, jnp.minimum(first + 1, size - 1)], axis=-1)
  low, high = jnp.moveaxis(jnp.take_along_axis(ascending, pair, axis=-1), -1, 0)
  largest = jnp.where(count > 0, ascending[..., -1], 0.0)
  low, high = jnp.where(count > 0, low, 0.0), jnp.where(count > 0, high, 0.0)
  threshold = low + share * (high - low)
  ascending = jnp.where(counted, ascending, threshold[..., None])
  in_tail = counted & (ascending >= threshold[..., None])
  unit = largest - threshold
  smallest = jnp.min(jnp.where(in_tail, ascending, largest[..., None]), axis=-1)
  regular = (unit > 0) & (largest > smallest)
  unit = jnp.where(regular, unit, 1.0)
  excess = jnp.where(in_tail, (ascending - threshold[..., None]) / unit[..., None], 0.0)
  return UpperTail(ascending, counted, in_tail, threshold, largest, unit, excess, regular)


def gaussian_of_tail(tail: UpperTail, tail_fraction: float) -> GaussianTail:
  """`fit_gaussian_tail` of a sorted group."""
  quantile = -float(special.ndtri(tail_fraction))
  mills_ratio = float(np.exp(-0.5 * quantile**2) / np.sqrt(2.0 * np.pi)) / tail_fraction
  variance_ratio = 1.0 + quantile * mills_ratio - mills_ratio**2
  count = jnp.sum(tail.in_tail, axis=-1)
  mean = jnp.sum(tail.excess, axis=-1) / jnp.maximum(count, 1)
  squares = jnp.where(tail.in_tail, jnp.square(tail.excess - mean[..., None]), 0.0)
  variance = jnp.sum(squares, axis=-1) / jnp.maximum(count - 1, 1)
  # Two wheres, so that sqrt is not differentiated at 0.
  scale = jnp.sqrt(jnp.where(tail.regular, variance, 1.0) / variance_ratio)
  loc = tail.threshold + tail.unit * (mean - mills_ratio * scale)
  return GaussianTail(
    jnp.where(tail.regular, loc, tail.largest), jnp.where(tail.regular, tail.unit * scale, 0.0)
  )


@functools.cache
def _gaussian_shape(tail_fraction: float) -> float:
  """Shape that probability-weighted moments find in a Gaussian tail."""
  nodes, weights = np.polynomial.legendre.leggauss(200)
  survival = (nodes + 1.0) / 2.0
  excess = -special.ndtri(tail_fraction * survival) + special.ndtri(tail_fraction)
  mean, weighted = weights @ excess / 2.0, weights @ (excess * survival) / 2.0
  return float(2.0 - mean / (mean - 2.0 * weighted))


def pareto_of_tail(tail: UpperTail, tail_fraction: float) -> ParetoTail:
  """`fit_pareto_tail` of a sorted group."""
  count = jnp.sum(tail.in_tail, axis=-1)
  # Share of the tail's other rewards that lie above each: 1 - F.
  above = np.arange(tail.excess.shape[-1])[::-1] / jnp.maximum(count - 1, 1)[..., None]
  mean = jnp.sum(tail.excess, axis=-1) / jnp.maximum(count, 1)
  weighted = jnp.sum(tail.excess * above, axis=-1) / jnp.maximum(count, 1)
  # Positive: it is half the mean difference of two excesses.
  difference = jnp.where(tail.regular, mean - 2.0 * weighted, 1.0)
  raw = 2.0 - mean / jnp.maximum(difference, 1e-6)
  shape = (count * raw + _PRIOR_COUNT * _gaussian_shape(tail_fraction)) / (count + _PRIOR_COUNT)
  shape = jnp.clip(shape, -LARGEST_SHAPE, LARGEST_SHAPE)
  return ParetoTail(
    jnp.where(tail.regular, tail.threshold, tail.largest),
    jnp.where(tail.regular, tail.unit * mean * (1.0 - shape), 0.0),
    jnp.where(tail.regular, shape, 0.0),
  )
