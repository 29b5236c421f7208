"""Errors of the laws, and of TEA's gradient, on rewards whose tail is known."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tea_jax.advantages import best_of_n_oracle
from tea_jax.runtime.keys import make_key
from tea_jax.scaling import best_of_n_interval, predict_best_of_n
from tea_jax.studies.scaling_laws.families import FAMILIES
from tea_jax.tail import shaped_reward, tail_influence, tail_vector

LAWS: dict[str, dict[str, Any]] = {
  "gaussian_tail": {"law": "gaussian_tail"},
  "gaussian_tail, quantile": {"law": "gaussian_tail", "coefficient": "quantile"},
  "pareto_tail": {"law": "pareto_tail"},
  "blend": {"law": "blend"},
}
"""Name in tables -> options of `predict_best_of_n`."""

WITH_INTERVALS = ("gaussian_tail", "pareto_tail", "blend")
ESTIMATORS = {"tea": shaped_reward, "tail_influence": tail_influence}


@dataclasses.dataclass(frozen=True)
class SyntheticConfig:
  """What the study runs.

  Attributes:
    num_rollouts: m, rewards that a law is fitted to.
    budgets: N.
    tail_fraction: of the laws.
    trials: groups of m for bias and RMSE.
    interval_trials: groups of m for coverage.
    num_resamples: of an interval.
    confidence: of an interval.
    gradient_tail_fraction: of TEA.
    gradient_budgets: N of TEA.
    gradient_trials: groups of m that its gradient is averaged over.
    pool_size: rewards that stand for the distribution in the exact gradient.
    seed: of all draws.
  """

  num_rollouts: tuple[int, ...] = (20, 50, 100, 200)
  budgets: tuple[int, ...] = (64, 128, 256, 1000, 10_000)
  tail_fraction: float = 0.2
  trials: int = 1000
  interval_trials: int = 250
  num_resamples: int = 300
  confidence: float = 0.95
  gradient_tail_fraction: float = 0.25
  gradient_budgets: tuple[int, ...] = (128, 1000)
  gradient_trials: int = 400
  pool_size: int = 4096
  seed: int = 0


def law_errors(
  config: SyntheticConfig, progress: Callable[[], None] | None = None
) -> list[dict[str, Any]]:
  """Bias, RMSE and coverage of each law, family, m and N, in units of the family's scale.

  Args:
    config: of the study.
    progress: called after each (m, law).

  Returns:
    Rows with `family, tail_index, num_rollouts, budget, law, bias, rmse, coverage`; coverage is
    None for a law without intervals.
  """
  truth = np.array([[f.expected_maximum(n) for n in config.budgets] for f in FAMILIES])
  rows = []
  for num_rollouts in config.num_rollouts:
    rng = np.random.default_rng([config.seed, num_rollouts])
    drawn = [family.draw(rng, (config.trials, num_rollouts)) for family in FAMILIES]
    rewards = jnp.asarray(np.stack(drawn))
    for law, options in LAWS.items():
      predicted = np.asarray(
        predict_best_of_n(rewards, config.budgets, tail_fraction=config.tail_fraction, **options),
        np.float64,
      )
      error = predicted - truth[:, None]
      coverage = None
      if law in WITH_INTERVALS:
        low, high = best_of_n_interval(
          rewards[:, : config.interval_trials],
          config.budgets,
          key=make_key(config.seed),
          num_resamples=config.num_resamples,
          confidence=config.confidence,
          law=options["law"],
          tail_fraction=config.tail_fraction,
        )
        coverage = np.mean((low <= truth[:, None]) & (truth[:, None] <= high), axis=1)
      for f, family in enumerate(FAMILIES):
        for b, budget in enumerate(config.budgets):
          rows.append(
            {
              "family": family.name,
              "tail_index": family.tail_index,
              "num_rollouts": num_rollouts,
              "budget": budget,
              "law": law,
              "bias": float(error[f, :, b].mean()),
              "rmse": float(np.sqrt(np.mean(error[f, :, b] ** 2))),
              "coverage": None if coverage is None else float(coverage[f, b]),
            }
          )
      if progress is not None:
        progress()
  return rows


def gradient_errors(config: SyntheticConfig) -> list[dict[str, Any]]:
  """Direction and length of TEA's gradient against the exact best-of-N gradient.

  The policy is a table of `pool_size` equally likely rewards at the family's quantiles, so that a
  gradient with respect to its logits is the centred advantage as a function of the reward. TEA's is
  averaged over groups of m: what is left is the error that averaging over prompts cannot remove.

  Returns:
    Rows with `family, num_rollouts, budget, estimator, cosine, scale_error`; the scale error is
    |g| / |g*| - 1.
  """
  rows = []
  survival = (np.arange(config.pool_size) + 0.5) / config.pool_size
  key = make_key(config.seed)
  for f, family in enumerate(FAMILIES):
    pool = jnp.asarray(family.at_survival(survival), jnp.float32)
    for budget in config.gradient_budgets:
      exact = best_of_n_oracle(budget=budget)(pool)
      for num_rollouts in config.num_rollouts:
        for estimator in ESTIMATORS:
          found = _mean_advantage(
            pool,
            jax.random.fold_in(key, f),
            estimator,
            num_rollouts,
            config.gradient_trials,
            config.gradient_tail_fraction,
            budget,
          )
          lengths = jnp.linalg.norm(found), jnp.linalg.norm(exact)
          rows.append(
            {
              "family": family.name,
              "num_rollouts": num_rollouts,
              "budget": budget,
              "estimator": estimator,
              "cosine": float(found @ exact / (lengths[0] * lengths[1])),
              "scale_error": float(lengths[0] / lengths[1] - 1.0),
            }
          )
  return rows


@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5, 6))
def _mean_advantage(
  pool: Float[Array, "n"],
  key: Array,
  estimator: str,
  num_rollouts: int,
  trials: int,
  tail_fraction: float,
  budget: int,
) -> Float[Array, "n"]:
  """Centred mean over groups of m of the advantage that each reward of the pool would have."""
  groups = jax.random.choice(key, pool, (trials, num_rollouts))

  def of_group(group: Array) -> Array:
    tail = tail_vector(group, tail_fraction)
    return ESTIMATORS[estimator](pool, tail, tail_fraction=tail_fraction, budget=budget)

  mean = jnp.mean(jax.lax.map(of_group, groups, batch_size=32), axis=0)
  return mean - jnp.mean(mean)


def run_study(
  config: SyntheticConfig, progress: Callable[[], None] | None = None
) -> dict[str, Any]:
  """Both studies as JSON: `config`, `laws`, `gradients`."""
  return {
    "config": dataclasses.asdict(config),
    "laws": law_errors(config, progress),
    "gradients": gradient_errors(config),
  }
