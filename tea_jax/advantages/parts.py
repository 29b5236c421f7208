"""Small parts of which rules are made: masked sums, centring, standardising, orders.

Everything here takes and returns arrays of the last axis = one group, in float32 or float64, with
`where=None` for the fast path in which every rollout counts.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array

from tea_jax.advantages.rule import Group
from tea_jax.tail import subsets as tail


def group_sum(values: Array, where: Array | None) -> Array:
  """`[..., 1]` sum over the rollouts that count."""
  return jnp.sum(values if where is None else jnp.where(where, values, 0), -1, keepdims=True)


def group_mean(values: Array, group: Group) -> Array:
  """`[..., 1]` mean over the rollouts that count; 0 if none does."""
  return group_sum(values, group.where) / jnp.maximum(group.count, 1)


def centre(values: Array, group: Group) -> Array:
  """values - mean, exactly 0 for a constant group, no overflow on the way.

  The mean of seven equal float32 numbers need not be that number; the differences from one of
  them are exact zeros.
  """
  # A power of two that keeps the sum of m differences in range costs nothing and loses nothing.
  shrink = 2.0 ** -(2 + math.ceil(math.log2(values.shape[-1])))
  shrunk = values * shrink
  if group.where is None:
    reference = shrunk[..., :1]
  else:
    first = jnp.argmax(group.where, -1, keepdims=True)
    reference = jnp.take_along_axis(shrunk, first, -1)
  difference = shrunk - reference
  return (difference - group_mean(difference, group)) / shrink


def standardize(
  values: Array, group: Group, *, ddof: int, epsilon: float, magnitude: Array | None = None
) -> Array:
  """(values - mean) / (std + epsilon), 0 where the spread is rounding error.

  Two passes: the mean is taken off before squaring. A standard deviation below 8 units in the last
  place of the largest value is noise, which dividing would blow up to advantages of order one;
  `magnitude`, `[..., 1]`, is that value where an offset has already been taken off.
  """
  centred = centre(values, group)
  if group.where is not None:
    centred = jnp.where(group.where, centred, 0)
  variance = jnp.sum(centred**2, -1, keepdims=True) / jnp.maximum(group.count - ddof, 1)
  deviation = jnp.sqrt(variance)
  if magnitude is None:
    magnitude = jnp.max(jnp.abs(values), -1, keepdims=True)
  noise = 8 * jnp.finfo(values.dtype).eps * magnitude
  spread = deviation > noise
  return jnp.where(spread, centred / jnp.where(spread, deviation + epsilon / group.scale, 1), 0)


def sort_rewards(values: Array) -> tuple[Array, Array]:
  """Ascending values and the order: `sorted = take_along_axis(values, order)`."""
  order = jnp.argsort(values, -1)
  return jnp.take_along_axis(values, order, -1), order


def unsort(values: Array, order: Array) -> Array:
  """Inverse of `take_along_axis(., order)`."""
  return jnp.put_along_axis(jnp.zeros_like(values), order, values, -1, inplace=False)


def count_below(group: Group) -> Array:
  """`[..., m]` number of rollouts of the group strictly below each: ties share one count."""
  values = group.rewards if group.where is None else jnp.where(group.where, group.rewards, jnp.inf)
  ascending, order = sort_rewards(values)
  index = jnp.broadcast_to(jnp.arange(values.shape[-1]), values.shape)
  starts = jnp.concatenate(
    [jnp.ones_like(order[..., :1], bool), ascending[..., 1:] != ascending[..., :-1]], -1
  )
  first_of_ties = jax.lax.cummax(jnp.where(starts, index, 0), axis=values.ndim - 1)
  return unsort(first_of_ties, order)


def positions_of(key: Array | None, group: Group) -> Array:
  """`[..., m]` int32: each rollout's place in a random order of its group, without a key as given.

  Rollouts that do not count come last.
  """
  shape = group.rewards.shape
  if key is not None:
    return tail.random_positions(key, shape, group.where)
  if group.where is None:
    return jnp.broadcast_to(jnp.arange(shape[-1], dtype=jnp.int32), shape)
  return jnp.where(group.where, jnp.cumsum(group.where, -1) - 1, shape[-1])
