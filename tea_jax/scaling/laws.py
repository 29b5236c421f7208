"""Scaling laws: how good the best of N rollouts would be, predicted from m of them.

Axes: `[..., num_rollouts]` rewards of one prompt's rollouts in, `[..., num_budgets]` values out.
Budgets, the law and its options are static under `jax.jit`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Real
from scipy import special

from tea_jax.scaling.tail_fits import (
  LARGEST_SHAPE,
  ParetoTail,
  UpperTail,
  gaussian_of_tail,
  pareto_of_tail,
  rewards_and_mask,
  upper_tail,
)
from tea_jax.tail.gaussian import check_budget, expected_maximum
from tea_jax.tail.statistics import as_rewards

Law = Literal["gaussian_tail", "pareto_tail", "blend", "empirical"]
Coefficient = Literal["expected_maximum", "quantile"]


def predict_best_of_n(
  rewards: Real[ArrayLike, "*batch num_rollouts"],
  budgets: Sequence[int],
  *,
  law: Law = "gaussian_tail",
  tail_fraction: float = 0.2,
  coefficient: Coefficient = "expected_maximum",
  where: Bool[ArrayLike, "*batch num_rollouts"] | None = None,
) -> Float[Array, "*batch num_budgets"]:
  """Expected reward of the best of N rollouts, for N far above the rollouts at hand.

  `gaussian_tail`: loc + scale c_N, see `fit_gaussian_tail`; c_N = E max of N standard normals, or
  the released code's Phi^-1(1 - 1/N). `pareto_tail`: E max of N draws from the rewards below the
  threshold and `fit_pareto_tail` above it. `blend`: the mean of the two. `empirical`: exact mean
  of the maximum over all subsets of N rollouts, for N up to m.

  Args:
    rewards: `[..., num_rollouts]` finite rewards; computed in at least float32.
    budgets: values of N.
    law: how the tail goes on beyond the rewards.
    tail_fraction: alpha, the upper share taken as tail; in (0, 0.5].
    coefficient: of `gaussian_tail`.
    where: `[..., num_rollouts]` True for the rollouts that count, None for all.

  Returns:
    `[..., num_budgets]`; NaN where no rollout counts, or fewer than N for `empirical`.

  Raises:
    ValueError: for a budget, law or coefficient out of range.

  Example:
    >>> rewards = jax.random.normal(jax.random.key(0), (4, 50))
    >>> predict_best_of_n(rewards, (128, 1024)).shape
    (4, 2)

  Source: arXiv 2602.01485, Algorithm 1 (`gaussian_tail`).
  """
  budgets = _checked(budgets, law, coefficient)
  rewards, mask = rewards_and_mask(rewards, where)
  if law == "empirical" and max(budgets) > rewards.shape[-1]:
    raise ValueError(
      f"budget={max(budgets)} is more than the {rewards.shape[-1]} rollouts: the empirical law "
      "cannot extrapolate; use law='gaussian_tail' or 'pareto_tail', or more rollouts."
    )
  return _predict(rewards, mask, budgets, law, float(tail_fraction), coefficient)


def best_of_n_interval(
  rewards: Real[ArrayLike, "*batch num_rollouts"],
  budgets: Sequence[int],
  *,
  key: Array,
  num_resamples: int = 1000,
  confidence: float = 0.95,
  law: Literal["gaussian_tail", "pareto_tail", "blend"] = "gaussian_tail",
  tail_fraction: float = 0.2,
  coefficient: Coefficient = "expected_maximum",
) -> tuple[Float[Array, "*batch num_budgets"], Float[Array, "*batch num_budgets"]]:
  """Confidence interval of `predict_best_of_n` for each prompt, by resampling from the fitted law.

  The law is fitted again to groups of m drawn from it. (prediction - truth) / tail scale of those
  groups is a pivot of a location-scale family, so the interval is right at every m if the law is.
  `blend` resamples from the Gaussian tail.

  Args:
    rewards, budgets, law, tail_fraction, coefficient: see `predict_best_of_n`.
    key: typed PRNG key of the resamples.
    num_resamples: groups of m drawn for each prompt.
    confidence: in (0, 1).

  Returns:
    `(low, high)`, each `[..., num_budgets]`; the prediction itself where the tail has no spread.

  Raises:
    ValueError: as `predict_best_of_n`, and for `empirical`, which is no law to draw from.
  """
  budgets = _checked(budgets, law, coefficient)
  if law == "empirical":
    raise ValueError("law='empirical' is no law to draw from; bootstrap over prompts instead.")
  if num_resamples < 1 or not 0 < confidence < 1:
    raise ValueError(
      f"num_resamples={num_resamples} must be positive and confidence={confidence} in (0, 1)"
    )
  rewards = as_rewards(rewards)
  return _interval(
    rewards,
    key,
    budgets=budgets,
    num_resamples=int(num_resamples),
    confidence=float(confidence),
    law=law,
    tail_fraction=float(tail_fraction),
    coefficient=coefficient,
  )


def _checked(budgets: Sequence[int], law: str, coefficient: str) -> tuple[int, ...]:
  if law not in get_args(Law):
    raise ValueError(f"law={law!r} is unknown; known: {', '.join(get_args(Law))}")
  if coefficient not in get_args(Coefficient):
    raise ValueError(
      f"coefficient={coefficient!r} is unknown; known: {', '.join(get_args(Coefficient))}"
    )
  if not len(budgets):
    raise ValueError("budgets is empty; give at least one N")
  for budget in budgets:
    check_budget(budget)
    if coefficient == "quantile" and budget < 2:
      raise ValueError(f"budget={budget} has no quantile 1 - 1/N; use N >= 2.")
  return tuple(int(budget) for budget in budgets)


@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5))
def _predict(
  rewards: Array,
  mask: Array,
  budgets: tuple[int, ...],
  law: str,
  tail_fraction: float,
  coefficient: str,
) -> Array:
  tail = upper_tail(rewards, mask, tail_fraction)
  if law == "empirical":
    return _subset_maximum(tail, budgets)
  predictions = []
  if law in ("gaussian_tail", "blend"):
    gaussian = gaussian_of_tail(tail, tail_fraction)
    steps = jnp.asarray(_coefficients(budgets, coefficient), rewards.dtype)
    predictions.append(gaussian.loc[..., None] + gaussian.scale[..., None] * steps)
  if law in ("pareto_tail", "blend"):
    predictions.append(
      _pareto_maximum(tail, pareto_of_tail(tail, tail_fraction), budgets, tail_fraction)
    )
  mean = sum(predictions) / len(predictions)
  return jnp.where(jnp.any(tail.counted, axis=-1)[..., None], mean, jnp.nan)


def _coefficients(budgets: tuple[int, ...], coefficient: str) -> np.ndarray:
  if coefficient == "quantile":
    return -special.ndtri(1.0 / np.asarray(budgets, np.float64))
  return np.array([expected_maximum(budget) for budget in budgets])


@functools.cache
def _maximum_nodes(budget: int, tail_fraction: float) -> tuple[np.ndarray, np.ndarray]:
  """Nodes log(tail_fraction / w) and weights of E over w, the survival of the best of N draws.

  w is the smallest of N uniforms, restricted to w < tail_fraction. In s = P(w' < w)^(1/4) the
  integrand is smooth for every shape up to 1/2.
  """
  nodes, weights = np.polynomial.legendre.leggauss(48)
  end = (1.0 - (1.0 - tail_fraction) ** budget) ** 0.25
  s = end * (nodes + 1.0) / 2.0
  survival = -np.expm1(np.log1p(-(s**4)) / budget)
  return np.log(tail_fraction / survival), weights * end / 2.0 * 4.0 * s**3


def _pareto_excess(pareto: ParetoTail, log_ratio: Array) -> Array:
  """Excess that a share exp(-log_ratio) of the tail exceeds: scale (e^(shape x) - 1) / shape."""
  shape = pareto.shape[..., None]
  curved = jnp.abs(shape) > 1e-4
  safe = jnp.where(curved, shape, 1.0)
  straight = log_ratio + 0.5 * shape * jnp.square(log_ratio)
  return pareto.scale[..., None] * jnp.where(curved, jnp.expm1(safe * log_ratio) / safe, straight)


def _mean_excess(
  pareto: ParetoTail, budgets: tuple[int, ...], tail_fraction: float, whole: bool = False
) -> Array:
  """`[..., num_budgets]` excess of the best of N, counted where there is one.

  `whole` lets the law go on below the threshold, with excesses below 0.
  """
  nodes = [_maximum_nodes(budget, 1.0 if whole else tail_fraction) for budget in budgets]
  log_ratio, weights = (np.stack(parts) for parts in zip(*nodes, strict=True))
  log_ratio = log_ratio + np.log(tail_fraction) if whole else log_ratio
  dtype = pareto.scale.dtype
  excess = _pareto_excess(pareto, jnp.asarray(log_ratio.ravel(), dtype))
  excess = excess.reshape(*pareto.scale.shape, *log_ratio.shape)
  return jnp.sum(excess * jnp.asarray(weights, dtype), axis=-1)


def _pareto_maximum(
  tail: UpperTail, pareto: ParetoTail, budgets: tuple[int, ...], tail_fraction: float
) -> Array:
  dtype = pareto.scale.dtype
  excess = _mean_excess(pareto, budgets, tail_fraction)
  # All N draws below the threshold: the maximum of N draws from the rewards there.
  none = jnp.asarray([(1.0 - tail_fraction) ** budget for budget in budgets], dtype)
  under = tail.counted & ~tail.in_tail
  rank = jnp.cumsum(under, axis=-1)
  share = rank / jnp.maximum(jnp.sum(under, axis=-1, keepdims=True), 1)
  log_share = jnp.log(jnp.where(rank > 0, share, 1.0))[..., None]
  power = jnp.exp(log_share * jnp.asarray(budgets, dtype))
  chance = jnp.diff(jnp.where(rank[..., None] > 0, power, 0.0), axis=-2, prepend=0.0)
  gap = jnp.where(under, tail.ascending - pareto.threshold[..., None], 0.0)
  values = pareto.threshold[..., None] + excess + none * jnp.sum(chance * gap[..., None], axis=-2)
  return jnp.where(tail.regular[..., None], values, tail.largest[..., None])


def _subset_maximum(tail: UpperTail, budgets: tuple[int, ...]) -> Array:
  """sum_i C(i-1, N-1) / C(n, N) r_(i), by the recursion of the weights from the largest down."""
  size = tail.ascending.shape[-1]
  count = jnp.sum(tail.counted, axis=-1, keepdims=True)
  descending, counted = tail.ascending[..., ::-1], tail.counted[..., ::-1]
  sizes = jnp.asarray(budgets)
  rank = jnp.maximum(count - np.arange(size - 1), 2)[..., None]  # i = n, n - 1, ...
  ratios = (jnp.maximum(rank - sizes, 0) / (rank - 1)).astype(descending.dtype)
  first = jnp.ones((*count.shape, len(budgets)), descending.dtype)
  weights = jnp.cumprod(jnp.concatenate([first, ratios], axis=-2), axis=-2)
  # Summed as distances from the largest: its weight is then not needed.
  gap = jnp.where(counted, descending - tail.largest[..., None], 0.0)
  mean = jnp.sum(weights * gap[..., None], axis=-2) * sizes / jnp.maximum(count, 1)
  return jnp.where(count >= sizes, tail.largest[..., None] + mean, jnp.nan)


@functools.partial(
  jax.jit,
  static_argnames=("budgets", "num_resamples", "confidence", "law", "tail_fraction", "coefficient"),
)
def _interval(
  rewards: Array,
  key: Array,
  *,
  budgets: tuple[int, ...],
  num_resamples: int,
  confidence: float,
  law: str,
  tail_fraction: float,
  coefficient: str,
) -> tuple[Array, Array]:
  def predict(rewards: Array) -> tuple[UpperTail, Array, Array]:
    """Tail, prediction, and mean excess over the threshold: the scale of pivots."""
    mask = jnp.isfinite(rewards)
    tail = upper_tail(rewards, mask, tail_fraction)
    scale = tail.unit * jnp.sum(tail.excess, -1) / jnp.maximum(jnp.sum(tail.in_tail, -1), 1)
    return tail, _predict(rewards, mask, budgets, law, tail_fraction, coefficient), scale

  def ends_of_pivots(drawn: Array, truth: Array) -> Array:
    """`[2, num_budgets]` quantiles over the groups drawn."""
    _, predictions, scales = predict(drawn)
    ends = jnp.asarray([0.5 - confidence / 2, 0.5 + confidence / 2], rewards.dtype)
    return jnp.quantile((predictions - truth) / scales[:, None], ends, axis=0)

  tail, prediction, scale = predict(rewards)
  shape = (num_resamples, rewards.shape[-1])
  if law == "pareto_tail":
    # The pivots depend on the shape alone, and smoothly.
    shapes = jnp.linspace(-LARGEST_SHAPE, LARGEST_SHAPE, 9, dtype=rewards.dtype)
    uniform = jax.random.uniform(key, shape, rewards.dtype, minval=jnp.finfo(jnp.float32).tiny)

    def of_shape(shape: Array) -> Array:
      unit = ParetoTail(jnp.zeros_like(shape), jnp.ones_like(shape), shape)
      drawn = _pareto_excess(unit, jnp.log(tail_fraction / uniform))
      return ends_of_pivots(drawn, _mean_excess(unit, budgets, tail_fraction, whole=True))

    table = lax.map(of_shape, shapes)
    fitted = pareto_of_tail(tail, tail_fraction).shape
    at_fitted = jax.vmap(jax.vmap(lambda column: jnp.interp(fitted, shapes, column), 1), 2)(table)
    lower, upper = jnp.moveaxis(at_fitted, (0, 1), (-1, 0))
  else:
    maxima = jnp.asarray(_coefficients(budgets, "expected_maximum"), rewards.dtype)
    lower, upper = ends_of_pivots(jax.random.normal(key, shape, rewards.dtype), maxima)
  low, high = prediction - scale[..., None] * upper, prediction - scale[..., None] * lower
  regular = tail.regular[..., None]
  return jnp.where(regular, low, prediction), jnp.where(regular, high, prediction)
