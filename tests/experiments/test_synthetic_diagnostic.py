"""The synthetic diagnostic end to end, at sizes that say little but go through everything."""

from __future__ import annotations

import dataclasses
import json

import pytest

from experiments import synthetic_diagnostic as script
from tea_jax.studies.gaussian_tail.config import (
  Cell,
  DiagnosticConfig,
  cell_name,
  cell_sizes,
  diagnostic_cells,
)


def small_flags(output, **changes):
  values = {
    "order": 1,
    "fractions": (0.5, 1.0),
    "larger_fractions": (0.5, 0.75, 1.0),
    "num_orders": 4,
    "num_rollouts": (32, 64),
    "prefix_num_rollouts": (64,),
    "trials": 3000,
    "subset_trials": 3000,
    "prefix_rollouts": 1,
    "subset_rollouts": 1,
    "output": output,
    "heat_map_batches": (1, 16, 256, 4096),
    "slope_from": 0,
  }
  return script.Flags(**{**values, **changes})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  pytest.importorskip("matplotlib")
  output = tmp_path_factory.mktemp("synthetic")
  summary = script.main(small_flags(output))
  return output, summary


@pytest.mark.slow
def test_run_writes_tables_figures_and_report(finished):
  output, _ = finished
  names = {path.name for path in output.iterdir()}
  assert names == {
    "cells",
    "table.csv",
    "table.json",
    "report.md",
    "scaling.png",
    "heat_map.png",
    "crossovers.png",
  }
  document = json.loads((output / "table.json").read_text())
  assert len(document["rows"]) == len((output / "table.csv").read_text().splitlines()) - 1 == 8


@pytest.mark.slow
def test_reduced_and_plain_bias_agree(finished):
  _, summary = finished
  # Of 8 chi-squares with 2 degrees of freedom one exceeds 22 with probability 1e-4.
  assert max(row.plain_distance for row in summary.rows) < 22.0


@pytest.mark.slow
def test_run_finds_the_known_constants(finished):
  _, summary = finished
  tea = summary.of("tea")[-1]
  assert tea.variance * 64 == pytest.approx(5.35, rel=0.15)
  assert tea.bias == pytest.approx(0.083, rel=0.1)
  subset = summary.of("subset_averaged")[-1]
  assert subset.bias < 0.5 * tea.bias
  assert tea.variance < subset.variance < summary.of("prefix")[0].variance


@pytest.mark.slow
def test_second_run_reads_the_cells_and_a_lost_one_comes_back_the_same(finished):
  output, _ = finished
  table = (output / "table.json").read_bytes()
  cells = {path: path.stat().st_mtime_ns for path in (output / "cells").iterdir()}
  lost = next(path for path in cells if path.name.startswith("tea-32"))
  before = json.loads(lost.read_text())
  lost.unlink()
  script.main(small_flags(output, figures=False))
  assert (output / "table.json").read_bytes() == table
  after = json.loads(lost.read_text())
  assert {**before, "seconds": 0} == {**after, "seconds": 0}
  for path, time in cells.items():
    assert path == lost or path.stat().st_mtime_ns == time


def test_name_of_a_cell_follows_the_settings_that_it_depends_on():
  config = DiagnosticConfig()
  tea, subset = Cell("tea", 256), Cell("subset_averaged", 256)
  more_orders = dataclasses.replace(config, num_orders=32)
  assert cell_name(config, tea) == cell_name(more_orders, tea)
  assert cell_name(config, subset) != cell_name(more_orders, subset)
  for change in ({"seed": 1}, {"trials": 32}, {"score": "tanh_cos"}, {"budget": 64}):
    assert cell_name(config, tea) != cell_name(dataclasses.replace(config, **change), tea)


def test_default_cells_cover_every_estimator_and_their_weights_cancel():
  config = DiagnosticConfig()
  cells = diagnostic_cells(config)
  assert len(cells) == len(set(cells)) == 3 * 7 + 2 * 5
  for cell in cells:
    sizes, weights = cell_sizes(config, cell)
    assert sum(weights) == pytest.approx(1.0)
    if len(sizes) > 1:
      assert sum(w / n for w, n in zip(weights, sizes)) == pytest.approx(0.0, abs=1e-12)


def test_settings_that_cannot_run_are_refused_before_any_cell():
  with pytest.raises(ValueError, match="budget=4"):
    DiagnosticConfig(budget=4)
  with pytest.raises(ValueError, match="prefixes"):
    DiagnosticConfig(prefix_num_rollouts=(16,))
  with pytest.raises(ValueError, match="trials=2"):
    DiagnosticConfig(trials=2)
  with pytest.raises(ValueError, match="num_rollouts=4 gives prefixes"):
    DiagnosticConfig(num_rollouts=(4,))
