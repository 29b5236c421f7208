"""Where runs of several rules went: their KL to the base, and best-of-N against it on the way.

A run is the list of its lines in `metrics.jsonl`; a rule has one run a seed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tea_jax.evaluation.plots import line_styles, new_figure, save_figure
from tea_jax.evaluation.report_tables import markdown_table

Run = Sequence[Mapping[str, Any]]
Curves = Mapping[str, Sequence[Run]]

_WINDOWS = 20  # points of a smoothed curve
_MATCHED = 0.1  # KLs that differ from the target by less, relatively, are the same


def largest_budget(runs: Curves, prefix: str = "best_of_n/") -> int | None:
  """The largest N whose best-of-N the runs logged; None if they logged none."""
  logged = [
    int(name.removeprefix(prefix))
    for run in next(iter(runs.values()))
    for line in run
    for name in line
    if name.startswith(prefix) and name.removeprefix(prefix).isdigit()
  ]
  return max(logged, default=None)


def final_kl(run: Run) -> float | None:
  """Mean KL to the base over the last quarter of a run, nats a completion; None if not logged."""
  logged = [line["kl"] for line in run if line.get("kl") is not None]
  return float(np.mean(logged[-max(len(logged) // 4, 1) :])) if logged else None


def _final_kls(group: Sequence[Run]) -> list[float]:
  return [kl for run in group if (kl := final_kl(run)) is not None]


def at_target(group: Sequence[Run], target: float) -> bool:
  """Whether the runs of a rule end within 10 % of a KL, on average; True if none was logged."""
  kls = _final_kls(group)
  return not kls or abs(float(np.mean(kls)) / target - 1) <= _MATCHED


def kl_table(runs: Curves, target: float | None = None) -> str:
  """Each rule's KL at the end of its runs, and whether it is the target within 10 %."""
  rows = []
  for name, group in runs.items():
    kls = _final_kls(group)
    if not kls:
      continue
    row = [name, f"{np.mean(kls):.3f}", " ".join(f"{kl:.3f}" for kl in kls)]
    if target is not None:
      row.append("yes" if at_target(group, target) else "**no**")
    rows.append(row)
  header = ["rule", "KL to the base, nats a completion", "each run"]
  if target is not None:
    header.append(f"within 10 % of {target:g}")
  return markdown_table(header, rows) if rows else ""


def kl_path_figure(path: str | os.PathLike[str], runs: Curves) -> bool:
  """Best-of-N against the KL to the base along the runs; False if there is nothing to draw.

  From the validations along a run where there are any, else from its training groups.
  """
  prefix = "validation/best_of_n/"
  if largest_budget(runs, prefix) is None:
    prefix = "best_of_n/"
  budget = largest_budget(runs, prefix)
  if budget is None or not _logs(runs, "kl"):
    return False
  key = f"{prefix}{budget}"
  figure = new_figure(5.2, 4.0)
  axis, styles = figure.subplots(), line_styles(runs)
  for name, group in runs.items():
    for seed, run in enumerate(group):
      kl, values = _smoothed(run, "kl", key)
      axis.plot(
        kl, values, **styles[name], marker="o", markersize=3, label=name if seed == 0 else None
      )
  where = "validation prompts" if prefix.startswith("validation") else "training prompts"
  axis.set_xlabel("KL to the base, nats a completion")
  axis.set_ylabel(f"best of {budget}, {where}")
  axis.set_title("Reward bought with KL along the runs")
  axis.legend(frameon=False)
  save_figure(figure, path)
  return True


def _logs(runs: Curves, key: str) -> bool:
  return all(any(line.get(key) is not None for line in run) for g in runs.values() for run in g)


def _smoothed(run: Run, *keys: str) -> list[np.ndarray]:
  """Means of each key over equal windows of the lines that log the last of `keys`.

  A key that is measured in every step is averaged over the steps since the line before.
  """
  marks = [i for i, line in enumerate(run) if line.get(keys[-1]) is not None]
  windows = np.array_split(np.array(marks), min(_WINDOWS, len(marks)))
  columns: list[list[float]] = [[] for _ in keys]
  for window in windows:
    for column, key in zip(columns, keys):
      lines = [run[i] for i in window]
      if len(window) == 1 and key != keys[-1]:
        lines = run[max(window[0] - 4, 0) : window[0] + 1]
      values = [line[key] for line in lines if line.get(key) is not None]
      column.append(float(np.mean(values)) if values else float("nan"))
  return [np.array(column) for column in columns]
