"""What a step's advantages look like: numbers for the log."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from tea_jax import tail


def advantage_diagnostics(
  rewards: Float[ArrayLike, "*batch num_rollouts"],
  advantages: Float[ArrayLike, "*batch num_rollouts"],
  *,
  tail_fraction: float,
  budget: int,
  where: Bool[ArrayLike, "*batch num_rollouts"] | None = None,
  minimum_rollouts: int = 2,
) -> dict[str, Float[Array, ""]]:
  """Means over the groups of a batch, as scalars by the name under which they are logged.

  tail/{threshold, mean, scale}: the groups' tail vectors.
  tail/tied_frac: share of groups with unequal rewards whose whole tail is one reward, so that rules
    of the tail cannot tell its rollouts apart.
  predicted_best_of_budget: extrapolated expected best of `budget`, mu + kappa sigma.
  effective_rollouts: (sum |A|)^2 / sum A^2, how many rollouts carry the update; over groups with
    any advantage. 1 if one rollout has it all, m if all have as much.
  advantage/{mean, std, min, max, nonzero_frac}: over rollouts that count.
  advantage/zero_group_frac: share of groups in which every advantage is 0.
  groups_too_small: number of groups with fewer than `minimum_rollouts` rollouts that count.

  Args:
    rewards: `[..., num_rollouts]`.
    advantages: `[..., num_rollouts]`, as a rule returned them for these rewards.
    tail_fraction: alpha of the tail vector, in (0, 0.5].
    budget: N of the prediction.
    where: `[..., num_rollouts]`, the rollouts that count; None for all.
    minimum_rollouts: of the rule, `rule.smallest_group(num_rollouts)`.

  Returns:
    Scalars in float32 (float64 for float64 rewards); 0 where there is nothing to average.

  Raises:
    ValueError: if the shapes differ, or `budget` is too small to extrapolate.

  Example:
    >>> rewards, advantages = jnp.array([1.0, 2.0, 3.0, 6.0]), jnp.array([-2.0, -1.0, 0.0, 3.0])
    >>> found = advantage_diagnostics(rewards, advantages, tail_fraction=0.5, budget=8)
    >>> float(found["tail/mean"]), float(found["advantage/nonzero_frac"])
    (4.5, 0.75)
  """
  rewards, advantages = jnp.asarray(rewards), jnp.asarray(advantages)
  if rewards.shape != advantages.shape or rewards.ndim < 1:
    raise ValueError(
      f"advantages have shape {advantages.shape}, but rewards have shape {rewards.shape}"
    )
  dtype = jnp.promote_types(rewards.dtype, jnp.float32)
  counts = jnp.ones(rewards.shape, bool) if where is None else jnp.asarray(where)
  rewards = jnp.where(counts, rewards, 0).astype(dtype)
  advantages = jnp.where(counts, advantages, 0).astype(dtype)

  per_group = jnp.sum(counts, -1)
  any_rollout = per_group > 0
  vector = tail.tail_vector(rewards, tail_fraction, where=None if where is None else counts)
  value = tail.best_of_n_value(vector, tail_fraction=tail_fraction, budget=budget)

  highest = jnp.max(rewards, -1, initial=-jnp.inf, where=counts)
  lowest = jnp.min(rewards, -1, initial=jnp.inf, where=counts)
  largest = jnp.max(jnp.abs(advantages), -1)
  nonzero = largest > 0
  unit = jnp.abs(advantages) / jnp.where(nonzero, largest, 1)[..., None]
  squares = jnp.sum(unit**2, -1)
  effective = jnp.sum(unit, -1) ** 2 / jnp.where(nonzero, squares, 1)

  mean = _mean(advantages, counts)
  spread = jnp.sqrt(_mean((advantages - mean) ** 2, counts))
  diagnostics = {
    "tail/threshold": _mean(vector.threshold, any_rollout),
    "tail/mean": _mean(vector.mean, any_rollout),
    "tail/scale": _mean(vector.scale, any_rollout),
    "tail/tied_frac": jnp.mean((highest <= vector.threshold) & (lowest < highest), dtype=dtype),
    "predicted_best_of_budget": _mean(value, any_rollout),
    "effective_rollouts": _mean(effective, nonzero),
    "advantage/mean": mean,
    "advantage/std": spread,
    "advantage/min": jnp.min(advantages, initial=0, where=counts),
    "advantage/max": jnp.max(advantages, initial=0, where=counts),
    "advantage/nonzero_frac": _mean((advantages != 0).astype(dtype), counts),
    "advantage/zero_group_frac": 1 - jnp.mean(nonzero.astype(dtype)),
    "groups_too_small": jnp.sum(per_group < minimum_rollouts).astype(dtype),
  }
  return jax.tree.map(jax.lax.stop_gradient, diagnostics)


def _mean(values: Array, where: Array) -> Array:
  return jnp.sum(jnp.where(where, values, 0)) / jnp.maximum(jnp.sum(where), 1)
