"""pass@N beyond the trials at hand: a beta law of the prompts' success probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Real
from scipy import optimize, special

from tea_jax.tail.gaussian import check_budget
from tea_jax.tail.order_statistics import log_binomial

# Bounds of log mean-odds and log concentration: prompts of which none, or every one, succeeds have
# their maximum at infinity.
_BOUNDS = ((-14.0, 14.0), (-7.0, 12.0))


class BetaLaw(NamedTuple):
  """Success probabilities of prompts ~ Beta(alpha, beta)."""

  alpha: float
  beta: float


def fit_success_rates(
  successes: Real[np.ndarray, "P"], trials: Real[np.ndarray, "P"] | int
) -> BetaLaw:
  """Beta law of the prompts' success probabilities, by maximum marginal likelihood.

  successes_p ~ BetaBinomial(trials_p, alpha, beta); mean odds and concentration are kept within
  e^-14 to e^14 and e^-7 to e^12.

  Args:
    successes: `[P]` successes of each prompt.
    trials: `[P]` its trials, or one number for all.

  Raises:
    ValueError: without a trial, or where successes are not between 0 and the trials.
  """
  successes, trials = _checked(successes, trials)

  def negative_log_likelihood(point: np.ndarray) -> float:
    alpha, beta = _parameters(point)
    terms = special.betaln(alpha + successes, beta + trials - successes)
    return float(len(terms) * special.betaln(alpha, beta) - terms.sum())

  rate = (successes.sum() + 0.5) / (trials.sum() + 1.0)
  starts = [(special.logit(rate), concentration) for concentration in (-1.0, 1.0, 4.0)]
  fits = [
    optimize.minimize(negative_log_likelihood, start, method="L-BFGS-B", bounds=_BOUNDS)
    for start in starts
  ]
  return BetaLaw(*_parameters(min(fits, key=lambda fit: fit.fun).x))


def predict_pass_at_n(
  successes: Real[np.ndarray, "P"],
  trials: Real[np.ndarray, "P"] | int,
  budgets: Sequence[int],
) -> Float[np.ndarray, "P num_budgets"]:
  """Probability that one of N trials succeeds, for N beyond the trials at hand too.

  N <= trials: 1 - C(n-c, N) / C(n, N), unbiased for each prompt. Beyond: its posterior mean
  1 - B(alpha + c, beta + n - c + N) / B(alpha + c, beta + n - c) under `fit_success_rates`. The two
  agree on average over prompts, not prompt by prompt, so average before comparing budgets.

  Args:
    successes: `[P]` c, successes of each prompt.
    trials: `[P]` n, its trials, or one number for all.
    budgets: values of N.

  Returns:
    `[P, num_budgets]` in [0, 1].

  Raises:
    ValueError: for impossible counts or budgets.

  Example:
    >>> predict_pass_at_n(np.array([0, 1, 3, 8]), 8, (8, 64)).mean(axis=0)
    array([0.75     , 0.8594...])
  """
  successes, trials = _checked(successes, trials)
  for budget in budgets:
    check_budget(budget)
  alpha, beta = fit_success_rates(successes, trials)
  failures = trials - successes
  columns = []
  for budget in budgets:
    # log of C(n-c, N) / C(n, N), where there are as many failures as draws.
    enough = failures >= budget
    safe = np.where(enough, failures, budget)
    log_none = log_binomial(safe, budget) - log_binomial(np.maximum(trials, budget), budget)
    exact = np.where(enough, -np.expm1(log_none), 1.0)
    a, b = alpha + successes, beta + failures
    posterior = -np.expm1(special.betaln(a, b + budget) - special.betaln(a, b))
    columns.append(np.where(trials >= budget, exact, posterior))
  return np.clip(np.stack(columns, axis=-1), 0.0, 1.0)


def _parameters(point: np.ndarray) -> tuple[float, float]:
  mean, concentration = special.expit(point[0]), np.exp(point[1])
  return float(mean * concentration), float(special.expit(-point[0]) * concentration)


def _checked(
  successes: Real[np.ndarray, "P"], trials: Real[np.ndarray, "P"] | int
) -> tuple[np.ndarray, np.ndarray]:
  counts = np.asarray(successes, np.float64)
  if counts.ndim != 1 or not counts.size:
    raise ValueError(f"successes must have the shape [prompts], got {counts.shape}")
  totals = np.broadcast_to(np.asarray(trials, np.float64), counts.shape)
  bad = np.flatnonzero(~((totals >= 1) & (counts >= 0) & (counts <= totals)))
  if bad.size:
    first = bad[0]
    raise ValueError(
      f"prompt {first} has {counts[first]:g} successes of {totals[first]:g} trials; at least one "
      "trial is needed, and successes between 0 and the trials"
    )
  return counts, totals
