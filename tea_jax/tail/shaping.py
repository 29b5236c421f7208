"""From tail statistics to what a rollout is worth: best-of-N value, shaped reward, influence."""

from __future__ import annotations

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Real

from tea_jax.tail.gaussian import influence_table, tail_constants
from tea_jax.tail.statistics import TailVector, as_rewards, invert_tail


def _with_group_axis(tail: TailVector, rewards: Array) -> TailVector:
  """Gives the tail a group axis, after checking that it fits the groups of `rewards`."""
  batch = rewards.shape[:-1]
  for name, value in zip(TailVector._fields, tail, strict=True):
    shape = jnp.shape(value)
    try:
      fits = jnp.broadcast_shapes(shape, batch) == batch
    except ValueError:
      fits = False
    if not fits:
      raise ValueError(
        f"tail.{name} of shape {shape} does not fit rewards of shape {rewards.shape}; "
        f"one value for each group, {batch}, is needed."
      )
  return TailVector(*(jnp.asarray(value)[..., None] for value in tail))


def best_of_n_value(
  tail: TailVector, *, tail_fraction: float, budget: int
) -> Float[Array, "*batch"]:
  """Expected best of `budget` rewards, extrapolated from the upper tail: V_N = mu + kappa sigma.

  Args:
    tail: `TailVector` of `[...]` arrays.
    tail_fraction: alpha, the upper share taken as tail; in (0, 0.5].
    budget: N, the deployment budget; at least `minimum_budget(tail_fraction)`.

  Returns:
    `[...]`, in units of reward. For a Gaussian tail the error is exponentially small in N.

  Raises:
    ValueError: if `budget` is too small to extrapolate.

  Example:
    >>> tail = TailVector(threshold=6.0, mean=6.5, scale=0.5)
    >>> print(f"{best_of_n_value(tail, tail_fraction=0.25, budget=128):.3f}")
    7.846

  Source: arXiv 2605.10716, Lemma 1.
  """
  curvature = tail_constants(tail_fraction, budget).curvature
  return jnp.asarray(tail.mean) + curvature * jnp.asarray(tail.scale)


def shaped_reward(
  rewards: Real[ArrayLike, "*batch num_rollouts"],
  tail: TailVector,
  *,
  tail_fraction: float,
  budget: int,
) -> Float[Array, "*batch num_rollouts"]:
  """Tail-shaped reward psi: its mean times the score is the best-of-N policy gradient.

  psi(r) = 1{r >= q} / alpha * [(r - q) + kappa / (2 s) * ((r - mu)^2 - (q - mu)^2)]

  Args:
    rewards: `[..., num_rollouts]` rewards of a group.
    tail: `TailVector` of the leading shape: threshold q, mean mu, scale s.
    tail_fraction: alpha, the upper share taken as tail; in (0, 0.5].
    budget: N, the deployment budget; at least `minimum_budget(tail_fraction)`.

  Returns:
    `[..., num_rollouts]` in units of reward and in the floating dtype of `rewards`; 0 at and below
    the threshold, negative just above it when kappa (mu - q) > s.

  Raises:
    ValueError: if `budget` is too small to extrapolate, or the shapes do not fit.

  Example:
    >>> tail = TailVector(threshold=6.0, mean=6.5, scale=0.5)
    >>> rewards = jnp.array([0.0, 6.0, 7.0])
    >>> print(shaped_reward(rewards, tail, tail_fraction=0.25, budget=128))
    [0. 0. 4.]

  Source: arXiv 2605.10716, Lemma 2, eq. 8.
  """
  curvature = tail_constants(tail_fraction, budget).curvature
  values = as_rewards(rewards)
  threshold, mean, scale = _with_group_axis(tail, values)
  # Rewards below the threshold are replaced, not only their result: their derivative is 0, not NaN.
  clipped = jnp.maximum(values, threshold)
  # (r - mu)^2 - (q - mu)^2 = (r - q) ((r - mu) + (q - mu)): exactly 0 on ties, no large squares.
  excess = clipped - threshold
  bend = (0.5 * curvature) * (((clipped - mean) + (threshold - mean)) / scale)
  shaped = (excess + excess * bend) / float(tail_fraction)
  return shaped.astype(_output_dtype(rewards))


def _output_dtype(rewards: ArrayLike):
  dtype = jnp.asarray(rewards).dtype
  return dtype if jnp.issubdtype(dtype, jnp.floating) else jnp.promote_types(dtype, jnp.float32)


def maximum_influence(values: Real[ArrayLike, "*shape"], budget: int) -> Float[Array, "*shape"]:
  """Influence of a standard normal draw on the expected maximum of `budget` draws.

  g(u) = N (E max(u, M_{N-1}) - E M_N), M_k the maximum of k draws: the derivative of the expected
  maximum as probability moves to u. Its mean over a standard normal u is 0.

  Args:
    values: u, of any shape.
    budget: N >= 2.

  Returns:
    The same shape and floating dtype; error below 1e-9 N in float64, 1e-6 N in float32.

  Example:
    >>> [f"{g:.3f}" for g in maximum_influence(jnp.array([-9.0, 0.0, 9.0]), 2)]
    ['-1.128', '-0.330', '16.872']
  """
  table = influence_table(int(budget))
  values = as_rewards(jnp.asarray(values)[..., None])[..., 0]
  num_cells = table.coefficients.shape[0]
  inside = jnp.clip(values, table.lower, table.upper)
  position = (inside - table.lower) * table.inverse_step
  cell = jnp.clip(jnp.floor(position).astype(jnp.int32), 0, num_cells - 1)
  offset = position - cell.astype(values.dtype)
  c0, c1, c2, c3 = jnp.moveaxis(jnp.asarray(table.coefficients, values.dtype)[cell], -1, 0)
  cubic = c0 + offset * (c1 + offset * (c2 + offset * c3))
  return cubic + budget * jnp.maximum(values - table.upper, 0.0)


def tail_influence(
  rewards: Real[ArrayLike, "*batch num_rollouts"],
  tail: TailVector,
  *,
  tail_fraction: float,
  budget: int,
) -> Float[Array, "*batch num_rollouts"]:
  """Influence of each reward on the expected best of `budget`, under the fitted Gaussian tail.

  A_i = N sigma (h((r_i - loc) / sigma) - c_N),  h(u) = E max(u, M_{N-1}), (loc, sigma) the
  Gaussian that has this tail. Where `shaped_reward` differentiates mu + kappa sigma, this
  differentiates the expected maximum itself. Not centred over the group: the influences of a
  fitted sample only have mean 0 in expectation. Rewards of a constant group have one influence.

  Args:
    rewards: `[..., num_rollouts]` rewards of a group.
    tail: `TailVector` of the leading shape.
    tail_fraction: alpha, the upper share taken as tail; in (0, 0.5].
    budget: N, the deployment budget; at least `minimum_budget(tail_fraction)`.

  Returns:
    `[..., num_rollouts]` in units of reward, in the floating dtype of `rewards`; increasing in the
    reward, with slope N far above and a small negative constant far below the expected maximum.

  Raises:
    ValueError: if `budget` is too small to extrapolate, or the shapes do not fit.

  Example:
    >>> tail = TailVector(threshold=6.0, mean=6.5, scale=0.5)
    >>> rewards = jnp.array([0.0, 6.0, 8.0])
    >>> influence = tail_influence(rewards, tail, tail_fraction=0.25, budget=128)
    >>> [f"{a:.3f}" for a in influence]
    ['-0.355', '-0.355', '33.393']
  """
  tail_constants(tail_fraction, budget)
  values = as_rewards(rewards)
  loc, scale = invert_tail(_with_group_axis(tail, values), tail_fraction)
  # Far below the mean the influence is constant; clipping before the division keeps it finite
  # for scales at their floor.
  deviation = jnp.maximum(values - loc, influence_table(int(budget)).lower * scale)
  influence = scale * maximum_influence(deviation / scale, budget)
  return influence.astype(_output_dtype(rewards))
