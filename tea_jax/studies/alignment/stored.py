"""Tables of a stored alignment.csv."""

from __future__ import annotations

import csv
import pathlib
from collections.abc import Sequence

from tea_jax.evaluation.report_tables import markdown_table
from tea_jax.studies.alignment.estimators import PUBLISHED_ALIGNMENT, PUBLISHED_SIZES


def cosine_table(path: str | pathlib.Path, pool: str, *, published: bool = False) -> str:
  """Mean and standard error by rule and group size; the largest mean of a column in bold.

  Args:
    path: of alignment.csv.
    pool: one of its pools.
    published: add the published rows, in italics.
  """
  rows = [row for row in _rows(path) if row["pool"] == pool]
  sizes = sorted({int(row["num_rollouts"]) for row in rows})
  of = {(row["rule"], int(row["num_rollouts"])): row for row in rows}
  best = {m: max(float(r["mean"]) for r in rows if int(r["num_rollouts"]) == m) for m in sizes}

  def cell(rule: str, size: int) -> str:
    if (rule, size) not in of:
      return "-"
    mean, error = (float(of[rule, size][key]) for key in ("mean", "standard_error"))
    text = f"{mean:.3f} ({error:.3f})"
    return f"**{text}**" if mean == best[size] else text

  table = []
  for rule in dict.fromkeys(row["rule"] for row in rows):
    table.append([rule, *(cell(rule, size) for size in sizes)])
    if published and rule in PUBLISHED_ALIGNMENT:
      values: dict[int, float] = dict(zip(PUBLISHED_SIZES, PUBLISHED_ALIGNMENT[rule]))
      table.append(["*published*", *(f"*{values[size]:.3f}*" for size in sizes)])
  return markdown_table(["rule", *(f"m = {size}" for size in sizes)], table)


def pools_table(path: str | pathlib.Path, rules: Sequence[str], sizes: Sequence[int]) -> str:
  """Means of some rules at some group sizes, for every pool."""
  rows = _rows(path)
  mean = {(r["pool"], r["rule"], int(r["num_rollouts"])): float(r["mean"]) for r in rows}
  table = [
    [pool, rule, *(f"{mean[pool, rule, size]:.3f}" for size in sizes)]
    for pool in dict.fromkeys(row["pool"] for row in rows)
    for rule in rules
  ]
  return markdown_table(["rewards", "rule", *(f"m = {size}" for size in sizes)], table)


def _rows(path: str | pathlib.Path) -> list[dict[str, str]]:
  with open(path) as file:
    return list(csv.DictReader(file))
