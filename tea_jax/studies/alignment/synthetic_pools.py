"""Pools of rewards with known shapes, on which advantage rules can be judged without a policy."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def _bimodal(key: Array, shape: tuple[int, ...], upper_share: float, deviation: float) -> Array:
  mode_key, noise_key = jax.random.split(key)
  upper = jax.random.bernoulli(mode_key, upper_share, shape)
  return jnp.where(upper, 1.5, -1.5) + deviation * jax.random.normal(noise_key, shape)


def _contaminated(key: Array, shape: tuple[int, ...]) -> Array:
  rare_key, noise_key = jax.random.split(key)
  rare = jax.random.bernoulli(rare_key, 0.05, shape)
  return jnp.where(rare, 2.5, 0.0) + jax.random.normal(noise_key, shape)


def _trimodal(key: Array, shape: tuple[int, ...]) -> Array:
  mode_key, noise_key = jax.random.split(key)
  mode = jax.random.randint(mode_key, shape, -1, 2)
  return 2.0 * mode + 0.6 * jax.random.normal(noise_key, shape)


def _triangular(key: Array, shape: tuple[int, ...]) -> Array:
  left, right = jax.random.split(key)
  return jax.random.uniform(left, shape) + jax.random.uniform(right, shape)


def _mixed(key: Array, shape: tuple[int, ...]) -> Array:
  """Another shape for each prompt, each with mean 0 and deviation about 1."""
  kinds = ("gaussian", "bimodal", "student_t5", "gumbel", "beta", "lognormal", "reversed_gumbel")
  drawn = []
  for i, kind in enumerate(kinds):
    values = POOL_SHAPES[kind](jax.random.fold_in(key, i), shape)
    drawn.append((values - jnp.mean(values)) / jnp.std(values))
  prompt = jnp.arange(shape[-2]) % len(kinds)
  return jnp.take_along_axis(jnp.stack(drawn), prompt[None, :, None], 0)[0]


POOL_SHAPES: dict[str, Callable[[Array, tuple[int, ...]], Array]] = {
  "gaussian": lambda key, shape: jax.random.normal(key, shape),
  "bimodal": lambda key, shape: _bimodal(key, shape, 0.5, 0.75),
  "student_t5": lambda key, shape: jax.random.t(key, 5.0, shape),
  "gumbel": lambda key, shape: jax.random.gumbel(key, shape),
  "beta": lambda key, shape: jax.random.beta(key, 2.0, 2.0, shape),
  "rare_upper_mode": lambda key, shape: _bimodal(key, shape, 0.3, 0.6),
  "lognormal": lambda key, shape: jnp.exp(0.5 * jax.random.normal(key, shape)),
  "laplace": lambda key, shape: jax.random.laplace(key, shape),
  "reversed_gumbel": lambda key, shape: -jax.random.gumbel(key, shape),
  "contaminated": _contaminated,
  "skewed_beta": lambda key, shape: jax.random.beta(key, 5.0, 2.0, shape),
  "uniform": lambda key, shape: jax.random.uniform(key, shape),
  "discrete": lambda key, shape: jnp.round(1.2 * jax.random.normal(key, shape)),
  "mixed": _mixed,
  "logistic": lambda key, shape: jax.random.logistic(key, shape),
  "trimodal": _trimodal,
  "triangular": _triangular,
  "reversed_exponential": lambda key, shape: -jax.random.exponential(key, shape),
  "rare_success": lambda key, shape: 1.0 * jax.random.bernoulli(key, 0.01, shape),
}
"""Name -> draws of `(key, [prompts, pool_size])`."""

DEFAULT_POOLS = ("gaussian", "bimodal", "student_t5", "gumbel", "beta")
"""The defaults of `blended_influence` were chosen on these."""
STRESS_POOLS = (
  "rare_upper_mode",
  "lognormal",
  "laplace",
  "reversed_gumbel",
  "contaminated",
  "skewed_beta",
  "uniform",
  "discrete",
  "mixed",
)
"""Looked at while choosing, not optimised; "mixed" has another shape for each prompt."""
FRESH_POOLS = ("logistic", "trimodal", "triangular", "reversed_exponential", "rare_success")
"""Not looked at before the choice was made."""


def synthetic_pools(
  key: Array,
  shape: str,
  *,
  num_prompts: int = 32,
  pool_size: int = 512,
  location_spread: float = 2.0,
  scale_spread: float = 0.5,
) -> Float[Array, "num_prompts pool_size"]:
  """Rewards of one shape, with another location and scale for each prompt.

  r_pi = a_p + exp(b_p) x_pi,  a_p ~ N(0, location_spread^2),  b_p ~ N(0, scale_spread^2)

  Args:
    key: random key.
    shape: a name of `POOL_SHAPES`.
    num_prompts, pool_size: P and n.
    location_spread: standard deviation of the locations, in units of reward.
    scale_spread: standard deviation of the logarithm of the scales.

  Raises:
    ValueError: for an unknown shape; the message lists the known ones.
  """
  if shape not in POOL_SHAPES:
    raise ValueError(f"unknown pool {shape!r}; known: {', '.join(POOL_SHAPES)}")
  value_key, location_key, scale_key = jax.random.split(key, 3)
  values = POOL_SHAPES[shape](value_key, (num_prompts, pool_size))
  location = location_spread * jax.random.normal(location_key, (num_prompts, 1))
  return location + jnp.exp(scale_spread * jax.random.normal(scale_key, (num_prompts, 1))) * values
