"""The decisions of searches, as jitted functions of the rewards seen so far."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tea_jax.scaling.laws import Coefficient, Law, predict_best_of_n


@functools.partial(jax.jit, static_argnames="num_states")
def choose_states(
  rewards: Float[Array, "P m"], allowed: Bool[Array, "P m"], *, num_states: int
) -> Int[Array, "P num_states"]:
  """Rollouts with the greatest rewards, in descending order, ties by number; -1 where none is left.

  Args:
    rewards: `[P, m]`; NaN never is chosen.
    allowed: `[P, m]` which may be chosen.
    num_states: K <= m.
  """
  usable = allowed & ~jnp.isnan(rewards)
  order = jnp.argsort(jnp.where(usable, -rewards, jnp.inf), axis=-1, stable=True)[..., :num_states]
  return jnp.where(jnp.take_along_axis(usable, order, axis=-1), order, -1)


def node_values(
  rewards: Float[Array, "P nodes m"],
  *,
  budget: int,
  law: Law = "gaussian_tail",
  tail_fraction: float = 0.2,
  coefficient: Coefficient = "expected_maximum",
) -> Float[Array, "P nodes"]:
  """Predicted best-of-N value of each node; NaN where it has no reward.

  Args:
    rewards: `[P, nodes, m]`, NaN for what does not count.
    budget, law, tail_fraction, coefficient: see `predict_best_of_n`.
  """
  known = ~jnp.isnan(rewards)
  return predict_best_of_n(
    jnp.where(known, rewards, 0.0),
    (budget,),
    law=law,
    tail_fraction=tail_fraction,
    coefficient=coefficient,
    where=known,
  )[..., 0]


@jax.jit
def choose_focus(values: Float[Array, "P candidates"]) -> Int[Array, "P"]:
  """Column of the greatest value, the first of ties; NaN is not chosen unless all are: then 0."""
  return jnp.argmax(jnp.where(jnp.isnan(values), -jnp.inf, values), axis=-1)


@jax.jit
def upper_bounds(
  count: Float[Array, "P candidates"],
  total: Float[Array, "P candidates"],
  squares: Float[Array, "P candidates"],
  exploration: float,
) -> Float[Array, "P candidates"]:
  """UCB1 of each node from the number, sum and sum of squares of its rewards; NaN without any."""
  everything = jnp.maximum(jnp.sum(count, axis=-1, keepdims=True), 1)
  mean = jnp.sum(total, axis=-1, keepdims=True) / everything
  variance = jnp.sum(squares, axis=-1, keepdims=True) / everything - jnp.square(mean)
  width = jnp.sqrt(jnp.maximum(variance, 0.0) * 2.0 * jnp.log(everything) / jnp.maximum(count, 1))
  bound = total / jnp.maximum(count, 1) + exploration * width
  return jnp.where(count > 0, bound, jnp.nan)


@jax.jit
def mean_values(rewards: Float[Array, "P nodes m"]) -> Float[Array, "P nodes"]:
  """Mean reward of each node; NaN where it has none."""
  known = ~jnp.isnan(rewards)
  count = jnp.sum(known, axis=-1)
  mean = jnp.sum(jnp.where(known, rewards, 0.0), axis=-1) / jnp.maximum(count, 1)
  return jnp.where(count > 0, mean, jnp.nan)
