"""The short table of a stored table.csv."""

from __future__ import annotations

import csv
import pathlib

from tea_jax.evaluation.report_tables import markdown_table

_ESTIMATORS = {
  "tea": "TEA",
  "tail_influence": "tail influence",
  "prefix": "Prefix-TEA, main",
  "prefix_larger": "Prefix-TEA, larger J",
  "subset_averaged": "subset-averaged, 16 orders",
}


def diagnostic_table(path: str | pathlib.Path) -> str:
  """Bias, variance times m and crossover of every estimator, the published values in brackets."""
  with open(path) as file:
    stored = list(csv.DictReader(file))
  rows = []
  for row in stored:
    size = int(row["num_rollouts"])
    resolved = row["bias_resolved"] == "True"
    bias = f"{float(row['bias']):.3g}" if resolved else f"< {float(row['bias_upper_limit']):.2g}"
    variance = f"{float(row['variance']) * size:.3g}"
    crossover = row["crossover"]
    if row["bias_published"]:
      bias += f" ({float(row['bias_published']):.3g})"
      variance += f" ({float(row['variance_published']) * size:.3g})"
    if crossover not in ("", "never"):
      published = row["crossover_published"]
      crossover = f"{float(crossover):.0f}" + (f" ({float(published):.0f})" if published else "")
    rows.append([_ESTIMATORS[row["estimator"]], str(size), bias, variance, crossover])
  return markdown_table(["estimator", "m", "bias", "variance * m", "B*"], rows)
