"""Uncertainty: paired bootstrap intervals over prompts, t over runs; win / tie / loss.

Completions of a prompt share its difficulty, so prompts are what is resampled. Two policies are
compared on the same prompts by their differences; one matrix of resampled prompts serves both
policies and all budgets, which is what pairing means.
"""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from scipy import stats

BootstrapMethod = Literal["percentile", "basic", "BCa"]


@dataclasses.dataclass(frozen=True)
class Interval:
  """An estimate with its confidence interval; arrays when several budgets were asked for.

  Attributes:
    estimate: mean over prompts or runs.
    low, high: ends of the interval.
  """

  estimate: Any
  low: Any
  high: Any

  def __format__(self, spec: str) -> str:
    spec = spec or "+.3f"
    return f"{self.estimate:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"

  def __getitem__(self, index: int) -> Interval:
    return Interval(self.estimate[index], self.low[index], self.high[index])

  @property
  def excludes_zero(self) -> Any:
    """Whether the whole interval lies on one side of 0; never of a point, which has no spread."""
    low, high = np.asarray(self.low), np.asarray(self.high)
    return ((low > 0) | (high < 0)) & (low < high)


def prompt_bootstrap(
  values: Float[np.ndarray, "P *rest"],
  *,
  num_resamples: int = 1000,
  confidence: float = 0.95,
  method: BootstrapMethod = "percentile",
  seed: int = 0,
) -> Interval:
  """Interval of the mean over prompts.

  Args:
    values: `[P, ...]` a value of each prompt; trailing axes (budgets) share the resamples.
    num_resamples: bootstrap samples of P prompts.
    confidence: in (0, 1).
    method: of `scipy.stats.bootstrap`.
    seed: of the resamples.

  Returns:
    `Interval` of shape `[...]`; the point itself where there is one prompt or no spread.

  Source: arXiv 2605.10716, B.2 (1,000 resamples).
  """
  values = np.asarray(values, np.float64)
  if values.ndim < 1 or values.shape[0] < 1:
    raise ValueError(f"a bootstrap over prompts needs [prompts, ...] values, got {values.shape}")
  if not np.isfinite(values).all():
    raise ValueError(f"{(~np.isfinite(values)).sum()} of {values.size} values are not finite")
  if num_resamples < 1 or not 0 < confidence < 1:
    raise ValueError(
      f"num_resamples={num_resamples} must be positive and confidence={confidence} in (0, 1)"
    )
  estimate = values.mean(axis=0)
  if values.shape[0] == 1:
    return Interval(estimate, estimate, estimate)
  spread = np.ptp(values, axis=0) > 0
  if not spread.any():
    return Interval(estimate, estimate, estimate)
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # handled below
    interval = stats.bootstrap(
      (values,),
      np.mean,
      axis=0,
      n_resamples=num_resamples,
      confidence_level=confidence,
      method=method,
      vectorized=True,
      rng=np.random.default_rng(seed),
    ).confidence_interval
  low = np.where(spread, interval.low, estimate)  # BCa is undefined without spread
  high = np.where(spread, interval.high, estimate)
  if values.ndim == 1:
    return Interval(float(estimate), float(low), float(high))
  return Interval(estimate, low, high)


def paired_bootstrap(
  values: Float[np.ndarray, "P *rest"], baseline: Float[np.ndarray, "P *rest"], **options: Any
) -> Interval:
  """Interval of the mean difference `values - baseline` over the same prompts.

  Args:
    values, baseline: `[P, ...]` of two policies, e.g. `Frontier.per_prompt`.
    **options: of `prompt_bootstrap`.
  """
  values, baseline = np.asarray(values, np.float64), np.asarray(baseline, np.float64)
  if values.shape != baseline.shape:
    raise ValueError(
      f"a paired comparison needs the same prompts and budgets, got shapes {values.shape} "
      f"and {baseline.shape}"
    )
  return prompt_bootstrap(values - baseline, **options)


def pooled_bootstrap(
  values: Float[np.ndarray, "S P *rest"],
  baseline: Float[np.ndarray, "S P *rest"],
  *,
  resample_seeds: bool = False,
  num_resamples: int = 1000,
  confidence: float = 0.95,
  seed: int = 0,
) -> Interval:
  """Paired difference of two methods, each trained with S seeds and judged on the same prompts.

  Args:
    values, baseline: `[S, P, ...]`; seed s of one is compared with seed s of the other.
    resample_seeds: False averages a prompt's differences over the seeds and resamples prompts: the
      interval speaks about other prompts, for these training runs. True resamples seeds and then
      prompts: it speaks about other runs too, and with few seeds is wide and rough.
    num_resamples, confidence, seed: see `prompt_bootstrap`; percentile intervals.
  """
  values, baseline = np.asarray(values, np.float64), np.asarray(baseline, np.float64)
  if values.shape != baseline.shape or values.ndim < 2:
    raise ValueError(
      f"pooling needs [seeds, prompts, ...] of equal shapes, got {values.shape} "
      f"and {baseline.shape}"
    )
  difference = values - baseline
  if not resample_seeds:
    return prompt_bootstrap(
      difference.mean(axis=0), num_resamples=num_resamples, confidence=confidence, seed=seed
    )
  rng = np.random.default_rng(seed)
  num_seeds, num_prompts = difference.shape[:2]
  means = np.stack(
    [
      difference[rng.integers(num_seeds, size=num_seeds)][
        :, rng.integers(num_prompts, size=num_prompts)
      ].mean(axis=(0, 1))
      for _ in range(num_resamples)
    ]
  )
  tail = (1.0 - confidence) / 2
  low, high = np.quantile(means, [tail, 1.0 - tail], axis=0)
  return Interval(difference.mean(axis=(0, 1)), low, high)


def seed_interval(
  differences: Float[np.ndarray, "S *rest"], *, confidence: float = 0.95
) -> Interval:
  """Interval of the mean over training runs, by Student's t: runs are few, and differ by much.

  Args:
    differences: `[S, ...]` a value of each run, already averaged over prompts.
    confidence: in (0, 1).

  Returns:
    `Interval` of shape `[...]`; the point itself where there is one run or no spread.
  """
  values = np.asarray(differences, np.float64)
  if values.ndim < 1 or values.shape[0] < 1 or not np.isfinite(values).all():
    raise ValueError(f"an interval over runs needs finite [runs, ...] values, got {differences}")
  if not 0 < confidence < 1:
    raise ValueError(f"confidence={confidence} must be in (0, 1)")
  mean = values.mean(axis=0)
  if len(values) == 1:
    return Interval(mean, mean, mean)
  half = stats.t.ppf((1 + confidence) / 2, len(values) - 1) * stats.sem(values, axis=0)
  return Interval(mean, mean - half, mean + half)


@dataclasses.dataclass(frozen=True)
class WinTieLoss:
  """Shares of prompts, adding up to 1."""

  win: float
  tie: float
  loss: float

  def __str__(self) -> str:
    return f"{100 * self.win:.1f}/{100 * self.tie:.1f}/{100 * self.loss:.1f}"


def win_tie_loss(
  values: Float[np.ndarray, "P"], baseline: Float[np.ndarray, "P"], *, tolerance: float = 1e-6
) -> WinTieLoss:
  """Shares of prompts where `values` is above, within the tolerance of, or below `baseline`.

  Source: arXiv 2605.10716, B.2; the tolerance is not recoverable from its text.
  """
  difference = np.asarray(values, np.float64) - np.asarray(baseline, np.float64)
  if difference.ndim != 1 or np.shape(values) != np.shape(baseline) or not difference.size:
    raise ValueError(
      f"win/tie/loss needs one value a prompt of each policy, got {np.shape(values)} "
      f"and {np.shape(baseline)}"
    )
  if not np.isfinite(difference).all():
    raise ValueError("win/tie/loss needs finite values")
  win, loss = np.mean(difference > tolerance), np.mean(difference < -tolerance)
  return WinTieLoss(float(win), float(np.mean(np.abs(difference) <= tolerance)), float(loss))
