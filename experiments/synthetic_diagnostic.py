"""Bias and variance of the tail estimators on a Gaussian tail, beside the published table.

  python -m experiments.synthetic_diagnostic --output runs/synthetic

Every cell (estimator, m) is stored when it is done and found again by the next run with the same
settings: stop it at any time. Source: arXiv 2605.10716, Appendix E, Table 15, Figures 4 and 5.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from experiments import command
from tea_jax.runtime.files import write_text
from tea_jax.studies.gaussian_tail import figures as figures
from tea_jax.studies.gaussian_tail import report as report
from tea_jax.studies.gaussian_tail.config import (
  Cell,
  DiagnosticConfig,
  cell_name,
  diagnostic_cells,
)
from tea_jax.studies.gaussian_tail.published import PUBLISHED_BATCHES
from tea_jax.studies.gaussian_tail.simulation import CellResult, simulate_cell
from tea_jax.studies.gaussian_tail.summary import Summary, summarize


@dataclasses.dataclass(frozen=True)
class Flags(DiagnosticConfig):
  """The diagnostic and where its results go.

  Attributes:
    output: folder of the results; created if need be.
    batches: B, prompts averaged over, of the mean squared errors in the table.
    heat_map_batches: B of the heat map.
    slope_from: smallest m of the fitted slopes.
    workers: cells that run at the same time.
    figures: whether to draw; needs the extra "plots".
  """

  output: Path = Path("runs/synthetic")
  batches: tuple[int, ...] = PUBLISHED_BATCHES
  heat_map_batches: tuple[int, ...] = tuple(2**power for power in range(18))
  slope_from: int = 256
  workers: int = 2
  figures: bool = True

  def diagnostic(self) -> DiagnosticConfig:
    fields = dataclasses.fields(DiagnosticConfig)
    return DiagnosticConfig(**{field.name: getattr(self, field.name) for field in fields})


def run_cells(config: DiagnosticConfig, folder: Path, workers: int) -> list[CellResult]:
  """Runs the cells that `folder` does not hold yet; returns all."""
  folder.mkdir(parents=True, exist_ok=True)
  cells = diagnostic_cells(config)
  columns = (
    TextColumn("{task.description}"),
    BarColumn(),
    TextColumn("{task.percentage:.0f}%"),
    TimeElapsedColumn(),
  )
  with Progress(*columns, console=Console(stderr=True)) as bars:
    task = bars.add_task("cells", total=sum(cell.num_rollouts for cell in cells))

    def run(cell: Cell) -> CellResult:
      path = folder / cell_name(config, cell)
      if path.exists():
        bars.advance(task, cell.num_rollouts)
        return CellResult(**json.loads(path.read_text()))
      done = 0.0

      def progress(share: float) -> None:
        nonlocal done
        bars.advance(task, cell.num_rollouts * (share - done))
        done = share

      result = simulate_cell(config, cell, progress)
      write_text(path, json.dumps(dataclasses.asdict(result), indent=2) + "\n")
      return result

    with ThreadPoolExecutor(workers) as pool:
      futures = [pool.submit(run, cell) for cell in cells]
      try:
        return [future.result() for future in futures]
      except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise


def main(flags: Flags) -> Summary:
  config = flags.diagnostic()
  results = run_cells(config, flags.output / "cells", flags.workers)
  comparable = (config.tail_fraction, config.budget) == (0.25, 128)
  summary = summarize(
    results, batches=flags.batches, slope_from=flags.slope_from, comparable=comparable
  )
  Console().print(report.terminal_table(summary))
  report.write_tables(config, summary, flags.output)
  if flags.figures:
    figures.draw_scaling(summary, flags.output / "scaling.png")
    figures.draw_heat_map(summary, flags.heat_map_batches, flags.output / "heat_map.png")
    figures.draw_crossovers(summary, flags.output / "crossovers.png")
  ran = shlex.join(["python", "-m", "experiments.synthetic_diagnostic", *sys.argv[1:]])
  write_text(flags.output / "report.md", report.report_text(config, summary, command=ran))
  print(f"Wrote {flags.output / 'report.md'}")
  return summary


if __name__ == "__main__":
  chosen = tyro.cli(Flags, description=__doc__)
  sys.exit(command.run(lambda: main(chosen)))
