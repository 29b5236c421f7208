"""Crossovers, slopes and the published table of the Gaussian-tail diagnostic."""

from __future__ import annotations

import dataclasses
import io
import math

import numpy as np
import pytest
from rich.console import Console

from tea_jax.studies.gaussian_tail import summary as summaries
from tea_jax.studies.gaussian_tail.config import DiagnosticConfig
from tea_jax.studies.gaussian_tail.report import report_text, table_cells, terminal_table
from tea_jax.studies.gaussian_tail.simulation import CellResult


def cell(estimator, num_rollouts, bias, variance, noise=1e-9, target=(0.1, -0.4)):
  covariance = [[noise**2 / 2, 0.0], [0.0, noise**2 / 2]]
  vector = [0.6 * bias, 0.8 * bias]
  return CellResult(
    estimator=estimator,
    num_rollouts=num_rollouts,
    trials=1000,
    target=list(target),
    variance=variance,
    variance_error=0.01 * variance,
    bias=vector,
    bias_covariance=covariance,
    plain_bias=vector,
    plain_bias_covariance=covariance,
    seconds=1.0,
  )


def test_at_the_crossover_both_errors_are_equal():
  batch = summaries.crossover_batch(1.1, 0.01**2, 0.02, 0.03**2)
  assert batch == pytest.approx((1.1 - 0.02) / (0.03**2 - 0.01**2))
  assert 1.1 / batch + 0.01**2 == pytest.approx(0.02 / batch + 0.03**2)


def test_crossover_is_never_for_a_larger_bias_and_always_for_less_of_both():
  assert summaries.crossover_batch(1.0, 0.2, 0.5, 0.1) == math.inf
  assert summaries.crossover_batch(0.4, 0.05, 0.5, 0.1) == 0.0


def test_slope_of_a_power_law_is_its_exponent():
  grid = [64, 128, 512]
  slope = summaries.fit_slope(grid, [3.0 * m**-1.5 for m in grid], [0.0] * 3)
  assert slope is not None
  assert slope.slope == pytest.approx(-1.5)
  assert math.exp(slope.intercept) == pytest.approx(3.0)
  assert slope.error == 0.0
  assert summaries.fit_slope([64], [1.0], [0.1]) is None


def test_slope_error_is_that_of_two_points():
  slope = summaries.fit_slope([1, 10], [1.0, 0.1], [0.02, 0.001])
  assert slope is not None
  assert slope.error == pytest.approx(math.hypot(0.02, 0.01) / math.log(10.0))


def test_slope_leans_on_the_points_that_are_known_well():
  values = [1.0, 0.1, 0.05]
  slope = summaries.fit_slope([1, 10, 100], values, [0.001, 0.0001, 0.05])
  assert slope is not None
  assert slope.slope == pytest.approx(-1.0, abs=1e-3)


@pytest.mark.parametrize("key", summaries.PUBLISHED)
def test_published_errors_follow_from_published_bias_and_variance(key):
  row = summaries.PUBLISHED[key]
  for batch, mse in zip(summaries.PUBLISHED_BATCHES, row.mse, strict=True):
    # Bias and variance are given to as few as two digits.
    assert row.variance / batch + row.bias**2 == pytest.approx(mse, rel=0.08)


def test_published_crossovers_are_in_the_thousands():
  values = [
    summaries._published_crossover(estimator, m)
    for estimator, m in summaries.PUBLISHED
    if estimator != "tea"
  ]
  assert all(value is not None and 1e3 < value < 1e5 for value in values)


def test_noise_is_taken_out_of_the_bias_norm():
  noisy = cell("tea", 256, 0.05, 0.02, noise=0.03)
  row = summaries.summarize([noisy]).rows[0]
  assert row.bias == pytest.approx(0.04)
  assert row.bias_error == pytest.approx(0.03)
  assert row.mse[1] == pytest.approx(0.02 + 0.04**2)
  assert not row.resolved


def test_slopes_stop_at_the_noise_floor():
  grid = [256, 512, 1024, 2048]
  cells = [cell("tea", m, 5 / m, 6 / m) for m in grid]
  cells += [cell("prefix", m, 1e5 / m**3, 200 / m, noise=1e-4) for m in grid]
  summary = summaries.summarize(cells)
  slope = summary.bias_slopes["prefix"]
  assert slope is not None
  assert slope.num_rollouts == (256, 512)
  assert slope.slope == pytest.approx(-3.0, abs=0.1)
  assert summary.bias_slopes["tea"].slope == pytest.approx(-1.0)
  assert summary.variance_slopes["prefix"].num_rollouts == tuple(grid)
  bound = summary.bias_bounds["prefix"]
  assert bound is not None
  limit = 1e5 / 1024**3 + 2e-4
  assert bound[1:] == (512, 1024)
  assert bound[0] == pytest.approx(math.log2(limit / (1e5 / 512**3 - 2e-4)))
  assert summary.bias_bounds["tea"] is None


def test_row_holds_the_published_number_and_the_ratio():
  summary = summaries.summarize([cell("tea", 256, 0.022, 0.024), cell("prefix", 256, 0.002, 1.0)])
  record = summaries.row_record(summary.rows[0])
  assert record["variance_published"] == 0.024
  assert record["variance_ratio"] == pytest.approx(1.0)
  assert record["bias_ratio"] == pytest.approx(0.022 / 0.021)
  assert summaries.row_record(summary.rows[1])["crossover"] == pytest.approx(
    (1.0 - 0.024) / (0.022**2 - 0.002**2)
  )
  other_law = summaries.summarize([cell("tea", 256, 0.022, 0.024)], comparable=False)
  assert other_law.rows[0].published is None


def test_another_target_is_told_apart():
  cells = [cell("tea", 256, 0.02, 0.02), cell("tail_influence", 256, 0.0, 0.02, target=(0.4, 0.0))]
  row = summaries.summarize(cells).of("tail_influence")[0]
  assert row.bias_to_tea_target == pytest.approx(math.hypot(0.3, 0.4))


def test_report_reads_by_itself():
  cells = [cell("tea", m, 5 / m, 6 / m) for m in (256, 512)]
  cells += [cell("prefix", m, 1e-7, 200 / m, noise=1e-4) for m in (256, 512)]
  summary = summaries.summarize(cells)
  text = report_text(DiagnosticConfig(), summary, command="python x.py")
  assert "noise floor" in text
  assert "python x.py" in text
  for row in summary.rows:
    assert " | ".join(table_cells(row)) in text
  assert "< 2.0e-04" in text


def test_heat_map_is_negative_where_the_batch_is_beyond_the_crossover():
  from tea_jax.studies.gaussian_tail.figures import log_error_ratio

  summary = summaries.summarize([cell("tea", 256, 0.02, 0.02), cell("prefix", 256, 0.0, 1.0)])
  crossover = summary.of("prefix")[0].crossover
  assert crossover is not None
  grid, ratio = log_error_ratio(summary, "prefix", [1, crossover, 1e6])
  assert list(grid) == [256]
  np.testing.assert_allclose(ratio[1], 0.0, atol=1e-9)
  assert ratio[0] > 0 > ratio[2]


def test_cell_results_are_plain_numbers():
  assert dataclasses.asdict(cell("tea", 64, 0.1, 0.1))["bias"] == pytest.approx([0.06, 0.08])


def test_the_table_of_a_terminal_fits_80_columns():
  results = [cell("tea", 2048, 0.0028, 0.0031), cell("prefix_larger", 2048, 2e-5, 0.076)]
  found = summaries.summarize(results)
  text = io.StringIO()
  Console(file=text, width=80).print(terminal_table(found))
  assert "Prefix-TEA (larger J) 2048" in text.getvalue()
  assert "…" not in text.getvalue()
