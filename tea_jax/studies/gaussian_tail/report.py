"""The Gaussian-tail diagnostic in words and tables: terminal, CSV, JSON, report.md."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tea_jax.runtime.extras import extra
from tea_jax.runtime.files import plain, write_text
from tea_jax.studies.gaussian_tail.config import Cell, DiagnosticConfig, cell_sizes
from tea_jax.studies.gaussian_tail.published import PUBLISHED_BATCHES
from tea_jax.studies.gaussian_tail.simulation import influence_gradient, target_gradient
from tea_jax.studies.gaussian_tail.summary import (
  LABELS,
  RESOLVED,
  Row,
  Slope,
  Summary,
  row_record,
)

with extra("train", "the diagnostic's table"):
  from rich.table import Table

ORDERS = {
  "reversed": "every second one the reverse of the one before; the rule draws independent ones",
  "independent": "independent, as the rule subset_tea trains",
}


def _number(value: float | None, digits: int = 3) -> str:
  if value is None:
    return ""
  if math.isinf(value):
    return "never"
  if value == 0.0:
    return "0"
  if 1e-3 <= abs(value) < 1e5:
    return f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"
  return f"{value:.{digits - 1}e}"


def _beside(value: float, error: float | None, published: float | None) -> str:
  text = _number(value)
  if error:
    text += f" ± {_number(error, 2)}"
  if published:
    text += f" ({_number(published, 4)}; {value / published:.2f})"
  return text


def table_cells(row: Row) -> list[str]:
  """One row of the table: numbers, standard errors, (published; ratio)."""
  published = row.published
  cells = [LABELS[row.estimator], str(row.num_rollouts)]
  if row.resolved:
    cells.append(_beside(row.bias, row.bias_error, published and published.bias))
  else:
    noise = f"< {_number(row.bias_limit, 2)}"
    cells.append(noise + (f" ({_number(published.bias, 4)})" if published else ""))
  cells.append(_beside(row.variance, row.variance_error, published and published.variance))
  cells.append(_number(row.variance * row.num_rollouts))
  for batch, value in row.mse.items():
    reference = None
    if published and batch in PUBLISHED_BATCHES:
      reference = published.mse[PUBLISHED_BATCHES.index(batch)]
    cells.append(_beside(value, None, reference))
  if row.crossover is None:
    cells.append("")
  else:
    cells.append(_beside(row.crossover, row.crossover_error, row.published_crossover))
  return cells


def _header(summary: Summary) -> list[str]:
  batches = list(summary.rows[0].mse) if summary.rows else []
  return (
    ["estimator", "m", "bias norm", "variance", "variance · m"]
    + [f"MSE, B = {batch}" for batch in batches]
    + ["B* against TEA"]
  )


def terminal_table(summary: Summary) -> Table:
  """The table for a terminal of 80 columns: a line a row, published values in brackets.

  Standard errors, ratios and mean squared errors are in report.md.
  """

  def cell(value: float | None, published: float | None = None) -> str:
    if value is None:
      return ""
    return _number(value, 2) + ("" if published is None else f" ({_number(published, 2)})")

  table = Table(title="Gaussian-tail diagnostic (published)", box=None, padding=(0, 1, 0, 0))
  for index, name in enumerate(("estimator", "m", "bias", "variance", "B*")):
    table.add_column(name, justify="left" if index == 0 else "right", no_wrap=True)
  previous = None
  for row in summary.rows:
    if previous is not None and row.estimator != previous:
      table.add_section()
    previous, published = row.estimator, row.published
    known = published.bias if published else None
    bias = cell(row.bias, known) if row.resolved else f"< {cell(row.bias_limit, known)}"
    table.add_row(
      LABELS[row.estimator],
      str(row.num_rollouts),
      bias,
      cell(row.variance, published.variance if published else None),
      cell(row.crossover, row.published_crossover),
    )
  return table


def _markdown_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
  rule = ["---"] + ["---:"] * (len(header) - 1)
  return "\n".join("| " + " | ".join(line) + " |" for line in [list(header), rule, *lines])


def write_tables(config: DiagnosticConfig, summary: Summary, folder: Path) -> None:
  """Writes `table.csv` and `table.json`."""
  records = [plain(row_record(row), infinity="never") for row in summary.rows]
  columns = list(dict.fromkeys(name for record in records for name in record))
  text = io.StringIO()
  writer = csv.DictWriter(text, columns, lineterminator="\n")
  writer.writeheader()
  writer.writerows(records)
  write_text(folder / "table.csv", text.getvalue())

  def slopes(values: dict[str, Slope | None]) -> dict[str, Any]:
    return {name: slope._asdict() if slope else None for name, slope in values.items()}

  document = {
    "config": dataclasses.asdict(config),
    "target": target_gradient(config).tolist(),
    "tail_influence_target": influence_gradient(config).tolist(),
    "rows": records,
    "bias_slopes": slopes(summary.bias_slopes),
    "bias_slope_upper_bounds": summary.bias_bounds,
    "variance_slopes": slopes(summary.variance_slopes),
  }
  write_text(folder / "table.json", json.dumps(plain(document, infinity="never"), indent=2) + "\n")


def _slope_text(slope: Slope | None, bound: tuple[float, int, int] | None = None) -> list[str]:
  if slope is None and bound is not None:
    return [f"< {bound[0]:.2f}", f"{bound[1]}–{bound[2]}"]
  if slope is None:
    return ["in the noise", ""]
  grid = slope.num_rollouts
  return [f"{slope.slope:.3f} ± {slope.error:.3f}", f"{grid[0]}–{grid[-1]}"]


def _weights_lines(config: DiagnosticConfig, summary: Summary) -> list[str]:
  lines = []
  for estimator in ("prefix", "prefix_larger", "subset_averaged"):
    rows = summary.of(estimator)
    if rows:
      m = rows[-1].num_rollouts
      sizes, weights = cell_sizes(config, Cell(estimator, m))
      terms = ", ".join(f"{weight:.3f} × {size}" for size, weight in zip(sizes, weights))
      lines.append(f"- {LABELS[estimator]}, weight × sample size at m = {m}: {terms}.")
  return lines


def _worst(rows: Sequence[Row], kind: str) -> str:
  ratios = [
    (getattr(row, kind) / getattr(row.published, kind), row.num_rollouts)
    for row in rows
    if row.published and (kind == "variance" or row.resolved)
  ]
  if not ratios:
    return ""
  ratio, m = max(ratios, key=lambda pair: abs(math.log(pair[0])))
  return f"{ratio:.3f} at m = {m}"


def _findings(summary: Summary) -> list[str]:
  """What the run shows, in sentences that hold for any configuration."""
  lines = []
  for estimator in LABELS:
    rows = summary.of(estimator)
    if not rows:
      continue
    noisy = [row.num_rollouts for row in rows if not row.resolved]
    if noisy:
      grid = ", ".join(map(str, noisy))
      lines.append(
        f"- The bias of {LABELS[estimator]} is within {RESOLVED:g} times its noise at m = {grid}: "
        "the noise floor of this run. Upper limits stand in the table; the slope uses the other m."
      )
    bound = summary.bias_bounds[estimator]
    if bound is not None and bound[0] < 0:
      lines.append(
        f"- Into the noise the bias of {LABELS[estimator]} falls at least as m to the power "
        f"{bound[0]:.1f} (m = {bound[1]} to {bound[2]}, from the upper limit)."
      )
    crossed = [row for row in rows if row.crossover is not None]
    if crossed and estimator != "tail_influence":
      values = ", ".join(f"{_number(row.crossover)} (m = {row.num_rollouts})" for row in crossed)
      lines.append(f"- {LABELS[estimator]} has a smaller error than TEA beyond B* = {values}.")
    if any(row.published for row in rows):
      text = f"- {LABELS[estimator]}, ratio to the published table furthest from 1: variance "
      text += _worst(rows, "variance")
      bias = _worst(rows, "bias")
      lines.append(text + (f", bias {bias}." if bias else "."))
  tea = {row.num_rollouts: row.variance for row in summary.of("tea")}
  ratios = [
    f"{row.variance / tea[row.num_rollouts]:.2f} (m = {row.num_rollouts})"
    for row in summary.of("subset_averaged")
    if row.num_rollouts in tea
  ]
  if ratios:
    lines.append(f"- Variance of subset-averaged Prefix-TEA over TEA's: {', '.join(ratios)}.")
  worst = max((row.plain_distance for row in summary.rows), default=0.0)
  lines.append(
    f"- Variance-reduced and plain bias agree: over {len(summary.rows)} cells the largest "
    f"chi-square (2 degrees of freedom) between them is {worst:.1f}; the largest of that many is "
    f"{2.0 * math.log(max(len(summary.rows), 1)) + 1.2:.1f} on average by chance."
  )
  return lines


def report_text(config: DiagnosticConfig, summary: Summary, *, command: str) -> str:
  """The report: what was run, what it shows, how it was measured."""
  target, influence = target_gradient(config), influence_gradient(config)
  rows = [table_cells(row) for row in summary.rows]
  slopes = [
    [
      LABELS[name],
      *_slope_text(summary.bias_slopes[name], summary.bias_bounds[name]),
      *_slope_text(summary.variance_slopes[name]),
    ]
    for name in summary.bias_slopes
  ]
  lines = [
    "# Tail estimators on a Gaussian tail",
    "",
    f"Written by `{command}`.",
    "",
    "One prompt whose rewards are N(0, 1), with a bounded two-dimensional score "
    f"(`{config.score}`) for each rollout. The gradient of the best of N = {config.budget}, "
    "extrapolated from the upper tail (share "
    f"{config.tail_fraction:g}), is an integral, so that bias and variance of each estimator from "
    "m rollouts can be measured. A batch averages B independent prompts: its mean squared error is "
    "variance / B + bias². TEA plugs the empirical tail in and keeps an O(1/m) bias that no batch "
    "averages away; Prefix-TEA cancels it at the price of a larger variance, which a batch does "
    "average away; so there is a batch size B* from which on it wins.",
    "",
    "## Result",
    "",
    "Value ± standard error (published value; ratio to it). The published values are Table 15 of "
    f"arXiv 2605.10716. `< x`: not told from noise (within {RESOLVED:g} times its size); x is an "
    "upper limit, the measured norm and twice the noise.",
    "",
    _markdown_table(_header(summary), rows),
    "",
    "Slopes of log value against log m:",
    "",
    _markdown_table(["estimator", "bias", "over m", "variance", "over m"], slopes),
    "",
    "![Bias and variance against m](scaling.png)",
    "",
    "![Error ratio to TEA over m and B](heat_map.png)",
    "",
    "![Crossover batch sizes](crossovers.png)",
    "",
    "## What it shows",
    "",
    *_findings(summary),
    "",
    "## How it was measured",
    "",
    f"- Target of TEA and Prefix-TEA, E[ψ(r; η) s(r)]: ({target[0]:.6f}, {target[1]:.6f}), by "
    "quadrature.",
    "- The estimators are the functions of `tea_jax.tail`, jitted and mapped over groups. The "
    "variance is the trace of their empirical covariance; its standard error comes from the "
    "fourth moments.",
    "- The bias of Prefix-TEA integrates the evaluation half out exactly, given each fitted tail. "
    "That of subset-averaged Prefix-TEA uses that the rollouts are exchangeable: each of its terms "
    "has the mean of the direct estimator of as many rollouts. All biases are then regressed on "
    "functions of the sample whose mean is known exactly, with coefficients from the other half "
    "of the trials. None of this adds bias; the plain mean of the estimator is kept as a check.",
    "- The standard error of a bias is that of the vector, the root of the trace of the covariance "
    "of its mean. The norm is freed of the noise's own share, since the norm of a noisy zero is "
    "not zero.",
    *_weights_lines(config, summary),
    "- Prefix-TEA splits its m rollouts into a fitting and an evaluation half; order "
    f"{config.order}. Subset-averaged Prefix-TEA takes all for both, averages over "
    f"{config.num_orders} random orders ({ORDERS[config.orders]}), order {config.subset_order}.",
    "- Tail-influence weighs a rollout with its influence on the expected best of N itself and "
    f"centres the group. Its limit is ({influence[0]:.6f}, {influence[1]:.6f}), the derivative of "
    "the expected maximum as the law moves along the centred score; its bias, error and B* are "
    "against that limit. ψ is the influence on μ + κσ of the tail, not centred, while this "
    "synthetic score has a mean: hence another limit, "
    f"{math.dist(target, influence):.4f} away. For the scores of a Gaussian family both are exact "
    "and agree. Its B* therefore compares errors against two targets and is no contest.",
    f"- Trials in a cell: {min((r.trials for r in summary.rows), default=0)} or more; "
    f"seed {config.seed}.",
    "",
  ]
  distances = [
    f"{row.bias_to_tea_target:.4f} (m = {row.num_rollouts})"
    for row in summary.rows
    if row.bias_to_tea_target is not None
  ]
  if distances:
    lines.insert(
      -1, f"- Distance of the mean of tail-influence to the target of TEA: {', '.join(distances)}."
    )
  return "\n".join(lines)
