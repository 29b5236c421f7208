"""Is the upper tail of a prompt's rewards Gaussian? The QQ linearity of Table 14.

Upper quantiles of the rewards are regressed on normal quantiles; R^2 near 1 supports the tail model
behind the estimators. With 256 completions the test has little power: exactly normal rewards give a
median R^2 of 0.986 and pass the 0.95 mark for only 98 % of prompts, so `qq_linearity` of a
`gaussian_reference` of the same size belongs beside every table.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float
from scipy.special import ndtri

from tea_jax.evaluation.best_of_n import checked_rewards

DEFAULT_PROBABILITIES = np.linspace(0.80, 0.99, 20)


@dataclasses.dataclass(frozen=True)
class QQLinearity:
  """Fit of upper reward quantiles q(p) = location + scale * Phi^{-1}(p), prompt by prompt.

  Attributes:
    r_squared: `[P]`, NaN where the upper tail is constant.
    location, scale: `[P]` of the fitted normal tail, in units of reward.
    threshold: the R^2 that counts as linear.
  """

  r_squared: Float[np.ndarray, "P"]
  location: Float[np.ndarray, "P"]
  scale: Float[np.ndarray, "P"]
  threshold: float

  @property
  def num_constant(self) -> int:
    """Prompts whose upper tail is constant; they are left out of the summary."""
    return int(np.isnan(self.r_squared).sum())

  def summary(self) -> dict[str, float]:
    """Median, mean, 10th percentile, and the share of prompts at or above the threshold."""
    values = self.r_squared[~np.isnan(self.r_squared)]
    if not values.size:
      nothing = float("nan")
      return {"median": nothing, "mean": nothing, "p10": nothing, "share": nothing}
    return {
      "median": float(np.median(values)),
      "mean": float(values.mean()),
      "p10": float(np.quantile(values, 0.1)),
      "share": float(np.mean(values >= self.threshold)),
    }


def qq_linearity(
  rewards: Float[np.ndarray, "P n"],
  probabilities: Float[np.ndarray, "Q"] | None = None,
  *,
  threshold: float = 0.95,
) -> QQLinearity:
  """R^2 = 1 - SS_res / SS_tot of the affine fit of upper quantiles on normal quantiles.

  Args:
    rewards: `[P, n]`, finite.
    probabilities: increasing, in (0, 1), at least 3; by default 0.80, 0.81, ..., 0.99.
    threshold: of the reported share.

  Source: arXiv 2605.10716, section 4.6, Table 14; its range of p is not recoverable, 0.95 is the
  only round threshold between its reported median and 10th percentile.
  """
  rewards = checked_rewards(rewards)
  levels = DEFAULT_PROBABILITIES if probabilities is None else np.asarray(probabilities, np.float64)
  if levels.ndim != 1 or levels.size < 3 or not (np.diff(levels) > 0).all():
    raise ValueError(f"probabilities must be at least 3 increasing numbers, got {levels}")
  if levels[0] <= 0 or levels[-1] >= 1:
    raise ValueError(f"probabilities must lie in (0, 1), got {levels[0]} to {levels[-1]}")
  quantiles = np.quantile(rewards, levels, axis=1).T
  normal = ndtri(levels)
  centred = normal - normal.mean()
  deviation = quantiles - quantiles.mean(axis=1, keepdims=True)
  scale = deviation @ centred / (centred @ centred)
  location = quantiles.mean(axis=1) - scale * normal.mean()
  residual = ((deviation - scale[:, None] * centred) ** 2).sum(axis=1)
  total = (deviation**2).sum(axis=1)
  # Equal quantiles still differ in the last bits of their mean.
  constant = total <= (1e-12 * np.maximum(1.0, np.abs(quantiles).max(axis=1))) ** 2 * levels.size
  r_squared = np.where(constant, np.nan, 1.0 - residual / np.where(constant, 1.0, total))
  return QQLinearity(r_squared, location, scale, threshold)


def gaussian_reference(
  num_prompts: int, num_samples: int, *, seed: int = 0
) -> Float[np.ndarray, "P n"]:
  """Standard normal rewards `[P, n]`: what the diagnostic says when its hypothesis is true."""
  return np.random.default_rng(seed).standard_normal((num_prompts, num_samples))
