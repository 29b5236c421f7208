"""The Gaussian-tail diagnostic: bias and variance of the tail estimators where the truth is known.

One prompt, rewards r ~ N(0, 1), a bounded two-dimensional score s(r). The gradient that every
estimator of the shaped reward aims at, E[psi(r; eta) s(r)], is an integral. A cell of the
diagnostic is one estimator at one number of rollouts: `simulate_cell` runs the estimator of
`tea_jax.tail` itself on many groups, jitted and mapped, and returns its moments.

The *variance* is that of the estimator. The *bias* is measured on terms that have the
estimator's expectation and less noise (see `tea_jax.studies.gaussian_tail.controls`):

| estimator | terms, combined with its cancellation weights |
|---|---|
| `tea`, `tail_influence` | the estimator itself |
| `prefix`, `prefix_larger` | E[psi(r; eta_hat(A_n_j)) s(r)] given eta_hat, integrated exactly |
| `subset_averaged` | the direct estimator of n_j rollouts: the rollouts are exchangeable |

Source: arXiv 2605.10716, Appendix E; the last two estimators are not in the paper.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from tea_jax import tail as tails
from tea_jax.runtime.keys import make_key
from tea_jax.studies.gaussian_tail import controls as controls
from tea_jax.studies.gaussian_tail.config import (
  PREFIX_ESTIMATORS,
  SCORES,
  Cell,
  DiagnosticConfig,
  cell_sizes,
  cell_trials,
  prefix_options,
)

_ELEMENTS_PER_CHUNK = 1 << 20


@dataclasses.dataclass(frozen=True)
class CellResult:
  """Moments of one estimator at one group size. All plain numbers, so that it is also JSON.

  Attributes:
    estimator, num_rollouts, trials: what was run.
    target: `[2]` what the bias is measured against.
    variance: trace of the covariance of the estimator.
    variance_error: its standard error.
    bias: `[2]` mean minus target, variance reduced.
    bias_covariance: `[2, 2]` of the noise in `bias`.
    plain_bias, plain_bias_covariance: the same from the plain mean of the estimator: a check.
    seconds: wall time.
  """

  estimator: str
  num_rollouts: int
  trials: int
  target: list[float]
  variance: float
  variance_error: float
  bias: list[float]
  bias_covariance: list[list[float]]
  plain_bias: list[float]
  plain_bias_covariance: list[list[float]]
  seconds: float


def population_tail(tail_fraction: float) -> np.ndarray:
  """`[3]` threshold, mean and scale of the upper tail of N(0, 1)."""
  quantile, mills_ratio, tail_variance = tails.tail_constants(tail_fraction, 10**7)[:3]
  return np.array([quantile, mills_ratio, math.sqrt(tail_variance)])


def target_gradient(config: DiagnosticConfig) -> Float[np.ndarray, "2"]:
  """E[psi(r; eta) s(r)] over N(0, 1) at the population tail: what TEA and Prefix-TEA estimate."""
  return controls.expected_gradient(
    population_tail(config.tail_fraction)[None],
    lambda values: SCORES[config.score](values, np),
    tail_fraction=config.tail_fraction,
    budget=config.budget,
  )[0]


def influence_gradient(config: DiagnosticConfig) -> Float[np.ndarray, "2"]:
  """N Cov(E[max(r, M_{N-1}) | r], s(r)): the limit of the tail-influence estimator.

  The derivative of the expected best of N as the density of r moves along s - E[s]. It differs
  from `target_gradient`, which weighs with the influence of mu + kappa sigma and does not centre;
  for the scores of a Gaussian family, in which both extrapolations are exact, the two agree.
  """
  return controls.influence_gradient(
    lambda values: SCORES[config.score](values, np), budget=config.budget
  )


def cell_target(config: DiagnosticConfig, cell: Cell) -> Float[np.ndarray, "2"]:
  """What an estimator converges to."""
  if cell.estimator == "tail_influence":
    return influence_gradient(config)
  return target_gradient(config)


class _Trial(NamedTuple):
  """One group: the estimate, the terms of its expectation, and what controls their noise."""

  estimate: Array | np.ndarray  # [2]
  terms: Array | np.ndarray  # [num_sizes, 2], not used by the prefix estimators
  oracles: Array | np.ndarray  # [num_controls], with a mean that is known
  tails: Array | np.ndarray  # [num_sizes, 3]


def _one_group(
  key: PRNGKeyArray, orders_key: PRNGKeyArray, *, config: DiagnosticConfig, cell: Cell
) -> _Trial:
  rewards = jax.random.normal(key, (cell.num_rollouts,))
  scores = SCORES[config.score](rewards, jnp)
  tail_of = functools.partial(
    tails.tail_vector, tail_fraction=config.tail_fraction, scale_floor=config.scale_floor
  )
  law = {"tail_fraction": config.tail_fraction, "budget": config.budget}
  floored = {**law, "scale_floor": config.scale_floor}
  population = tails.TailVector(*jnp.asarray(population_tail(config.tail_fraction), jnp.float32))
  sizes, _ = cell_sizes(config, cell)
  fitted = [tail_of(rewards[:size]) for size in sizes]
  stacked = jnp.stack([jnp.stack(tail) for tail in fitted])

  if cell.estimator == "tail_influence":
    influence = tails.tail_influence(rewards, fitted[0], **law)
    estimate = (influence - jnp.mean(influence)) @ scores / cell.num_rollouts
    exact = tails.tail_influence(rewards, population, **law)
    oracles = jnp.append(exact @ scores / cell.num_rollouts, jnp.mean(exact))
    return _Trial(estimate, estimate[None], oracles, stacked)

  if cell.estimator in PREFIX_ESTIMATORS:
    order, fractions = prefix_options(config, cell.estimator)
    estimate = tails.prefix_gradient(
      rewards, scores, order=order, fractions=fractions, objective=config.objective, **floored
    )
    return _Trial(estimate, jnp.zeros((len(sizes), 2)), jnp.zeros(0), stacked)

  terms = jnp.stack(
    [tails.direct_gradient(rewards[:size], scores[:size], **floored) for size in sizes]
  )
  exact = tails.shaped_reward(rewards, population, **law)
  oracles = [exact[:size] @ scores[:size] / size for size in sizes]
  estimate = terms[0]
  if cell.estimator == "subset_averaged":
    order, fractions = prefix_options(config, cell.estimator)
    estimate = tails.subset_averaged_gradient(
      rewards,
      scores,
      key=orders_key,
      num_orders=config.num_orders,
      orders=config.orders,
      order=order,
      fractions=fractions,
      objective=config.objective,
      **floored,
    )
  return _Trial(estimate, terms, jnp.concatenate(oracles), stacked)


def _trial_chunks(config: DiagnosticConfig, cell: Cell) -> Iterator[_Trial]:
  """Runs a cell's estimator group by group; arrays lead with the trial, float64 on the host.

  Groups of a chunk share their random orders: rollouts are exchangeable, so given any orders the
  estimator has the same mean, and the variance is averaged over the orders of the chunks.
  """
  trials = cell_trials(config, cell)
  chunk = min(trials, max(1, _ELEMENTS_PER_CHUNK // cell.num_rollouts))
  one_group = functools.partial(_one_group, config=config, cell=cell)
  step = jax.jit(jax.vmap(one_group, in_axes=(0, None)))
  root = make_key(config.seed)
  for salt in (zlib.crc32(cell.estimator.encode()), cell.num_rollouts):
    root = jax.random.fold_in(root, salt)
  for index, start in enumerate(range(0, trials, chunk)):
    orders_key, groups_key = jax.random.split(jax.random.fold_in(root, index))
    raw = jax.device_get(step(jax.random.split(groups_key, chunk), orders_key))
    yield _Trial(*(np.asarray(part[: trials - start], np.float64) for part in raw))


def _response_and_features(
  config: DiagnosticConfig, cell: Cell, trials: _Trial, target: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """What has the estimator's bias as its mean, and what has mean zero, for each trial."""
  sizes, weights = cell_sizes(config, cell)
  terms = np.asarray(trials.terms)
  if cell.estimator in PREFIX_ESTIMATORS:
    terms = controls.expected_gradient(
      np.asarray(trials.tails),
      lambda values: SCORES[config.score](values, np),
      tail_fraction=config.tail_fraction,
      budget=config.budget,
    )
  response = np.einsum("j,tjd->td", weights, terms) - target
  features = [np.asarray(trials.oracles) - _known_means(cell, target, len(sizes))]
  features += [
    controls.tail_controls(np.asarray(trials.tails[:, j]), size, config.tail_fraction)
    for j, size in enumerate(sizes)
  ]
  return response, np.concatenate(features, axis=-1)


def simulate_cell(
  config: DiagnosticConfig, cell: Cell, progress: Callable[[float], None] | None = None
) -> CellResult:
  """Bias and variance of one estimator at one group size.

  Args:
    config: the run.
    cell: estimator and number of rollouts.
    progress: called with the share of the groups that is done.

  Returns:
    `CellResult`; the same for the same config.
  """
  start = time.perf_counter()
  target = cell_target(config, cell)
  total, done = cell_trials(config, cell), 0
  parts = []
  for chunk in _trial_chunks(config, cell):
    response, features = _response_and_features(config, cell, chunk, target)
    parts.append((np.asarray(chunk.estimate), response, features))
    done += len(response)
    if progress is not None:
      progress(done / total)
  estimates, response, features = (np.concatenate(part) for part in zip(*parts, strict=True))
  bias, bias_covariance = controls.controlled_mean(response, features)
  plain_bias, plain_covariance = controls.controlled_mean(estimates - target, None)
  squares = np.sum(np.square(estimates - estimates.mean(axis=0)), axis=-1)
  return CellResult(
    estimator=cell.estimator,
    num_rollouts=cell.num_rollouts,
    trials=total,
    target=target.tolist(),
    variance=float(squares.sum() / (total - 1)),
    variance_error=float(squares.std() / math.sqrt(total)),
    bias=bias.tolist(),
    bias_covariance=bias_covariance.tolist(),
    plain_bias=plain_bias.tolist(),
    plain_bias_covariance=plain_covariance.tolist(),
    seconds=time.perf_counter() - start,
  )


def _known_means(cell: Cell, target: np.ndarray, num_sizes: int) -> np.ndarray:
  """Expectations of `_Trial.oracles`: at the population tail the estimators are unbiased."""
  if cell.estimator in PREFIX_ESTIMATORS:
    return np.zeros(0)
  if cell.estimator == "tail_influence":
    return np.append(target, 0.0)
  return np.tile(target, num_sizes)
