"""From the cells of the Gaussian-tail diagnostic to its numbers: table, slopes, crossovers.

Beside each number stands the published one (Table 15 of arXiv 2605.10716), where there is one.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tea_jax.studies.gaussian_tail.published import PUBLISHED, PUBLISHED_BATCHES, Published
from tea_jax.studies.gaussian_tail.simulation import CellResult

LABELS = {
  "tea": "TEA",
  "tail_influence": "Tail-influence",
  "prefix": "Prefix-TEA (main)",
  "prefix_larger": "Prefix-TEA (larger J)",
  "subset_averaged": "Subset-averaged",
}
# A bias is told from noise when it is this many times the noise of the vector.
RESOLVED = 3.0
# The published grid starts here; subset-averaged Prefix-TEA is under the noise soon after.
_SLOPE_FROM = {"subset_averaged": 0}


class Slope(NamedTuple):
  """Least-squares fit of log value = intercept + slope log m.

  Attributes:
    slope, intercept: of natural logarithms.
    error: standard error of the slope that follows from those of the values.
    num_rollouts: the m that were fitted.
  """

  slope: float
  intercept: float
  error: float
  num_rollouts: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Row:
  """One estimator at one m.

  Attributes:
    bias: norm of the bias, its noise taken out: sqrt(max(0, |b|^2 - trace of its covariance)).
    bias_error: noise of the bias vector, sqrt(trace): what `bias` reads when there is none.
    raw_bias: norm of the measured vector, noise included.
    plain_distance: chi-square of 2 degrees of freedom between the reduced and the plain bias.
    variance, variance_error: trace of the covariance, its standard error.
    mse, mse_error: by batch size: variance / B + bias^2.
    crossover, crossover_error: B* against TEA; inf: never, 0: always, None for TEA.
    published, published_crossover: the published row, and B* computed from it.
    bias_to_tea_target: norm of the bias against the target of TEA, where that is another one.
  """

  estimator: str
  num_rollouts: int
  trials: int
  bias: float
  bias_error: float
  raw_bias: float
  plain_distance: float
  variance: float
  variance_error: float
  mse: dict[int, float]
  mse_error: dict[int, float]
  crossover: float | None
  crossover_error: float | None
  published: Published | None
  published_crossover: float | None
  bias_to_tea_target: float | None

  @property
  def resolved(self) -> bool:
    """Whether the bias is told from noise."""
    return self.raw_bias > RESOLVED * self.bias_error

  @property
  def bias_limit(self) -> float:
    """Upper limit of the bias, for where it is not resolved.

    Twice the noise of the vector is 2.8 times that of a component, if the two are alike.
    """
    return self.raw_bias + 2.0 * self.bias_error


@dataclasses.dataclass(frozen=True)
class Summary:
  """Rows in order of estimator and m, and slopes by estimator (None: under the noise).

  `bias_bounds` holds, where a bias sinks into the noise, an upper bound of its slope there and the
  two m between which it holds.
  """

  rows: tuple[Row, ...]
  bias_slopes: dict[str, Slope | None]
  bias_bounds: dict[str, tuple[float, int, int] | None]
  variance_slopes: dict[str, Slope | None]

  def of(self, estimator: str) -> list[Row]:
    return [row for row in self.rows if row.estimator == estimator]


def crossover_batch(
  variance: float, squared_bias: float, reference_variance: float, reference_squared_bias: float
) -> float:
  """B* from which on an estimator has the smaller error: v/B + b^2 = v_ref/B + b_ref^2.

  Args:
    variance, squared_bias: of the estimator, for one prompt.
    reference_variance, reference_squared_bias: of the one it is compared with.

  Returns:
    B*; inf if its bias is not the smaller one, 0 if moreover its variance is not larger.
  """
  if squared_bias >= reference_squared_bias:
    return math.inf
  gain = reference_squared_bias - squared_bias
  return max(variance - reference_variance, 0.0) / gain


def fit_slope(
  num_rollouts: Sequence[int], values: Sequence[float], errors: Sequence[float]
) -> Slope | None:
  """Slope of log value against log m, weighted by the errors; None for fewer than two points.

  Args:
    num_rollouts: m.
    values: positive.
    errors: standard errors of the values; if one is 0, all weigh the same.

  Returns:
    `Slope`, or None.
  """
  if len(num_rollouts) < 2:
    return None
  x = np.log(np.asarray(num_rollouts, np.float64))
  y = np.log(np.asarray(values, np.float64))
  relative = np.asarray(errors, np.float64) / np.asarray(values, np.float64)
  weights = np.ones_like(x) if np.any(relative == 0.0) else relative**-2
  weights = weights / weights.sum()
  centred = x - weights @ x
  leverage = weights * centred / (weights @ centred**2)
  slope = float(leverage @ y)
  return Slope(
    slope=slope,
    intercept=float(weights @ (y - slope * x)),
    error=float(np.sqrt(np.sum(np.square(leverage * relative)))),
    num_rollouts=tuple(int(m) for m in num_rollouts),
  )


def _slope_bound(rows: Sequence[Row]) -> tuple[float, int, int] | None:
  """Upper bound of the bias slope into the noise: last resolved m to the first that is not."""
  for row, following in itertools.pairwise(rows):
    if row.resolved and not following.resolved:
      lowest = row.raw_bias - 2.0 * row.bias_error
      rise = math.log(following.bias_limit / lowest)
      step = math.log(following.num_rollouts / row.num_rollouts)
      return rise / step, row.num_rollouts, following.num_rollouts
  return None


def _squared_bias(result: CellResult) -> tuple[float, float]:
  """|b|^2 without the noise's own share, not below 0; and its standard error."""
  bias, covariance = np.array(result.bias), np.array(result.bias_covariance)
  square = max(0.0, float(bias @ bias - np.trace(covariance)))
  error = math.sqrt(4.0 * bias @ covariance @ bias + 2.0 * np.sum(np.square(covariance)))
  return square, error


def _crossover(result: CellResult, tea: CellResult) -> tuple[float, float]:
  """B* against TEA and its standard error (delta method)."""
  square, square_error = _squared_bias(result)
  tea_square, tea_square_error = _squared_bias(tea)
  value = crossover_batch(result.variance, square, tea.variance, tea_square)
  if not 0.0 < value < math.inf:
    return value, 0.0
  relative_excess = math.hypot(result.variance_error, tea.variance_error) / (
    result.variance - tea.variance
  )
  relative_gain = math.hypot(square_error, tea_square_error) / (tea_square - square)
  return value, value * math.hypot(relative_excess, relative_gain)


def _published_crossover(estimator: str, num_rollouts: int) -> float | None:
  row, tea = PUBLISHED.get((estimator, num_rollouts)), PUBLISHED.get(("tea", num_rollouts))
  if row is None or tea is None or estimator == "tea":
    return None
  return crossover_batch(row.variance, row.bias**2, tea.variance, tea.bias**2)


def _row(
  result: CellResult, tea: CellResult | None, batches: Sequence[int], comparable: bool
) -> Row:
  bias, covariance = np.array(result.bias), np.array(result.bias_covariance)
  square, square_error = _squared_bias(result)
  gap = bias - np.array(result.plain_bias)
  plain_covariance = np.array(result.plain_bias_covariance)
  is_tea = result.estimator == "tea"
  crossover = crossover_error = to_tea_target = None
  if tea is not None and not is_tea:
    crossover, crossover_error = _crossover(result, tea)
    shift = np.array(result.target) - np.array(tea.target)
    if np.any(shift != 0.0):
      to_tea_target = float(np.linalg.norm(bias + shift))
  key = (result.estimator, result.num_rollouts)
  return Row(
    estimator=result.estimator,
    num_rollouts=result.num_rollouts,
    trials=result.trials,
    bias=math.sqrt(square),
    bias_error=float(np.sqrt(np.trace(covariance))),
    raw_bias=float(np.linalg.norm(bias)),
    plain_distance=float(gap @ np.linalg.solve(plain_covariance, gap)),
    variance=result.variance,
    variance_error=result.variance_error,
    mse={batch: result.variance / batch + square for batch in batches},
    mse_error={batch: math.hypot(result.variance_error / batch, square_error) for batch in batches},
    crossover=crossover,
    crossover_error=crossover_error,
    published=PUBLISHED.get(key) if comparable else None,
    published_crossover=_published_crossover(*key) if comparable else None,
    bias_to_tea_target=to_tea_target,
  )


def summarize(
  results: Sequence[CellResult],
  *,
  batches: Sequence[int] = PUBLISHED_BATCHES,
  slope_from: int = 256,
  comparable: bool = True,
) -> Summary:
  """Table, slopes and crossovers of a run.

  Args:
    results: cells, in any order.
    batches: B, prompts averaged over, of the mean squared errors.
    slope_from: smallest m of the fits. Those of subset-averaged Prefix-TEA take its whole grid,
      since its bias is soon under the noise.
    comparable: whether the run has the published law (tail fraction, budget).

  Returns:
    `Summary`. Bias slopes are fitted on the leading points that stand out of the noise.
  """
  tea = {result.num_rollouts: result for result in results if result.estimator == "tea"}
  order = list(LABELS)
  ordered = sorted(results, key=lambda cell: (order.index(cell.estimator), cell.num_rollouts))
  rows = tuple(_row(cell, tea.get(cell.num_rollouts), batches, comparable) for cell in ordered)
  bias_slopes: dict[str, Slope | None] = {}
  variance_slopes: dict[str, Slope | None] = {}
  bias_bounds: dict[str, tuple[float, int, int] | None] = {}
  for estimator in dict.fromkeys(row.estimator for row in rows):
    start = _SLOPE_FROM.get(estimator, slope_from)
    fitted = [row for row in rows if row.estimator == estimator and row.num_rollouts >= start]
    variance_slopes[estimator] = fit_slope(
      [row.num_rollouts for row in fitted],
      [row.variance for row in fitted],
      [row.variance_error for row in fitted],
    )
    bias_bounds[estimator] = _slope_bound(fitted)
    above = []
    for row in fitted:
      if not row.resolved:
        break
      above.append(row)
    bias_slopes[estimator] = fit_slope(
      [row.num_rollouts for row in above],
      [row.bias for row in above],
      [row.bias_error for row in above],
    )
  return Summary(rows, bias_slopes, bias_bounds, variance_slopes)


def row_record(row: Row) -> dict[str, Any]:
  """A row as flat columns, the published number and the ratio to it beside each number."""
  published = row.published

  def ratio(value: float, reference: float | None) -> float | None:
    return value / reference if reference else None

  record: dict[str, Any] = {
    "estimator": row.estimator,
    "num_rollouts": row.num_rollouts,
    "trials": row.trials,
  }

  def put(name: str, value: float | None, error: float | None, reference: float | None) -> None:
    record[name] = value
    record[f"{name}_error"] = error
    record[f"{name}_published"] = reference
    record[f"{name}_ratio"] = None if value is None else ratio(value, reference)

  put("bias", row.bias, row.bias_error, published and published.bias)
  record["bias_noise_included"] = row.raw_bias
  record["bias_upper_limit"] = row.bias_limit
  record["bias_resolved"] = row.resolved
  record["plain_mean_chi_square"] = row.plain_distance
  record["bias_to_tea_target"] = row.bias_to_tea_target
  put("variance", row.variance, row.variance_error, published and published.variance)
  for batch, value in row.mse.items():
    reference = None
    if published and batch in PUBLISHED_BATCHES:
      reference = published.mse[PUBLISHED_BATCHES.index(batch)]
    put(f"mse_{batch}", value, row.mse_error[batch], reference)
  put("crossover", row.crossover, row.crossover_error, row.published_crossover)
  return record
