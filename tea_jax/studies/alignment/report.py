"""What an alignment study leaves: CSV, JSON, a figure and report.md, each written whole."""

from __future__ import annotations

import csv
import io
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from tea_jax.runtime.figures import new_figure, save_png
from tea_jax.runtime.files import plain, write_text
from tea_jax.studies.alignment.estimators import (
  PUBLISHED_ALIGNMENT,
  PUBLISHED_SIZES,
  Alignment,
)

Study = Mapping[str, Mapping[int, Mapping[str, Alignment]]]
"""pool (or policy) -> group size -> rule -> `Alignment`."""


def rule_names(study: Study) -> list[str]:
  """Every rule of a study, in order of appearance."""
  cells = (rules for sizes in study.values() for rules in sizes.values())
  return list(dict.fromkeys(name for rules in cells for name in rules))


def alignment_rows(study: Study, pool: str) -> list[list[str]]:
  """`rule, mean (standard error) for each size` of one pool; the best mean of a size in bold."""
  sizes = study[pool]
  rows = []
  for name in rule_names({pool: sizes}):
    row = [name]
    for rules in sizes.values():
      best = max((x.mean for x in rules.values() if not np.isnan(x.mean)), default=np.nan)
      cell = rules.get(name)
      if cell is None or np.isnan(cell.mean):
        row.append("-")
        continue
      text = f"{cell.mean:.3f} ({cell.standard_error:.3f})"
      row.append(f"**{text}**" if cell.mean == best else text)
    rows.append(row)
  return rows


def published_rows(sizes: list[int]) -> list[list[str]]:
  """The published rows at those of `sizes` that they are for."""
  rows = []
  for name, values in PUBLISHED_ALIGNMENT.items():
    known = dict(zip(PUBLISHED_SIZES, values))
    rows.append([name, *(f"{known[m]:.3f}" if m in known else "-" for m in sizes)])
  return rows


def paired_rows(study: Study, rule: str) -> list[list[str]]:
  """Paired difference of `rule` to the best other rule, for each pool (row) and size.

  The best other rule is chosen by its mean at that pool and size: an upper envelope, so a small
  negative difference is expected of a rule that is as good as the best everywhere.
  """
  rows = []
  for pool, sizes in study.items():
    row = [pool]
    for rules in sizes.values():
      others = {n: x for n, x in rules.items() if n != rule and not np.isnan(x.mean)}
      if rule not in rules or not others:
        row.append("-")
        continue
      best = max(others, key=lambda n: others[n].mean)
      difference = rules[rule].cosines - others[best].cosines
      error = np.nanstd(difference, ddof=1) / np.sqrt(np.sum(~np.isnan(difference)))
      row.append(f"{np.nanmean(difference):+.3f} ({error:.3f}) {best}")
    rows.append(row)
  return rows


def write_alignment(
  study: Study,
  folder: str | os.PathLike[str],
  *,
  settings: Mapping[str, Any],
  compare: str | None = None,
  figure: bool = True,
) -> pathlib.Path:
  """Writes alignment.csv, alignment.json, alignment.png and report.md; returns report.md's path.

  Args:
    study: pool -> size -> rule -> `Alignment`.
    folder: created where it does not exist.
    settings: of the study, shown first.
    compare: a rule whose paired differences to the best other one are shown.
    figure: draw alignment.png (needs matplotlib).
  """
  from tea_jax.evaluation.report_tables import markdown_table

  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  sizes = list(next(iter(study.values())))
  header = ["rule", *(f"m = {m}" for m in sizes)]
  sections = [
    "# Alignment with the best-of-N gradient",
    "Cosine of a rule's gradient from m rollouts with the oracle's at the same rollouts, summed "
    "over prompts; mean (standard error) over seeds. Rules share pools and groups, so their "
    "differences are far more precise than the standard errors say.",
    markdown_table(["setting", "value"], [[k, str(v)] for k, v in settings.items()]),
  ]
  for pool in study:
    sections += [f"## {pool}", markdown_table(header, alignment_rows(study, pool))]
  if compare is not None:
    sections += [
      f"## {compare} minus the best other rule",
      "Paired by seed; the best other rule is named, and chosen at each pool and size.",
      markdown_table(["pool", *header[1:]], paired_rows(study, compare)),
    ]
  sections += [
    "## Published (arXiv 2605.10716, Table 13)",
    "On a 1B language model; the group sizes of its columns are inferred.",
    markdown_table(header, published_rows(sizes)),
  ]
  write_text(folder / "alignment.csv", _csv(study))
  write_text(folder / "alignment.json", _json(study, settings))
  if figure:
    _draw(study, folder / "alignment.png")
    sections.append("![cosine over group size](alignment.png)")
  report = folder / "report.md"
  write_text(report, "\n\n".join(sections) + "\n")
  return report


def _csv(study: Study) -> str:
  file = io.StringIO()
  writer = csv.writer(file, lineterminator="\n")
  writer.writerow(["pool", "num_rollouts", "rule", "mean", "standard_error", "num_seeds"])
  for (pool, size, rule), cell in _cells(study).items():
    defined = int(np.sum(~np.isnan(cell.cosines)))
    writer.writerow([pool, size, rule, f"{cell.mean:.6f}", f"{cell.standard_error:.6f}", defined])
  return file.getvalue()


def _json(study: Study, settings: Mapping[str, Any]) -> str:
  cells = [
    {
      "pool": pool,
      "num_rollouts": size,
      "rule": rule,
      "mean": plain(cell.mean),
      "standard_error": plain(cell.standard_error),
      "cosines": plain(list(cell.cosines)),
    }
    for (pool, size, rule), cell in _cells(study).items()
  ]
  return json.dumps({"settings": dict(settings), "alignment": cells}, indent=1, default=str)


def _cells(study: Study) -> dict[tuple[str, int, str], Alignment]:
  return {
    (pool, size, rule): cell
    for pool, sizes in study.items()
    for size, rules in sizes.items()
    for rule, cell in rules.items()
  }


def _draw(study: Study, path: pathlib.Path) -> None:
  columns = min(3, len(study))
  lines = -(-len(study) // columns)
  figure = new_figure(4.2 * columns + 2.6, 3.4 * lines)
  axes = figure.subplots(lines, columns, squeeze=False, sharey=True).ravel()
  styles = {n: (f"C{i % 10}", "-" if i < 10 else "--") for i, n in enumerate(rule_names(study))}
  for axis, (pool, sizes) in zip(axes, study.items()):
    for name, (color, line) in styles.items():
      points = [(m, rules[name]) for m, rules in sizes.items() if name in rules]
      axis.errorbar(
        [m for m, _ in points],
        [cell.mean for _, cell in points],
        [np.nan_to_num(cell.standard_error) for _, cell in points],
        color=color,
        linestyle=line,
        marker="o",
        markersize=2.5,
        linewidth=1.0,
        label=name,
      )
    axis.set_xscale("log", base=2)
    axis.set_xticks(list(sizes), [str(m) for m in sizes])
    axis.set_xlabel("rollouts m")
    axis.set_title(pool)
  for axis in axes[len(study) :]:
    axis.set_visible(False)
  axes[0].set_ylabel("cosine to the oracle")
  handles, labels = axes[0].get_legend_handles_labels()
  figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=7)
  save_png(figure, path)
