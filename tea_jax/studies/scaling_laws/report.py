"""Table, advice and heat map of the synthetic study, all from its stored JSON."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from tea_jax.evaluation.report_tables import markdown_table
from tea_jax.runtime.figures import new_figure, save_png
from tea_jax.runtime.files import write_text

# The table's m, and its N: as far as training extrapolates, and far beyond.
_TABLE_ROLLOUTS = 50
_TABLE_BUDGETS = (128, 1000)


def write_report(folder: str | pathlib.Path, study: Mapping[str, Any], *, figures: bool) -> None:
  """Writes results.json, report.md and errors.png."""
  path = pathlib.Path(folder)
  path.mkdir(parents=True, exist_ok=True)
  write_text(path / "results.json", json.dumps(study, indent=1) + "\n")
  sections = [
    "# How far to trust a scaling law",
    "Best-of-N predicted from m rewards of a known distribution. Rewards are in units of half the "
    "distance between the 16 % and 84 % quantiles, a Gaussian's standard deviation.",
    study_table(study),
    "## Advice",
    "\n".join(f"- {sentence}" for sentence in advice(study)),
  ]
  if figures:
    draw_errors(path / "errors.png", study)
    sections.append("![RMSE of each law by family, m and N](errors.png)")
  write_text(path / "report.md", "\n\n".join(sections) + "\n")


def study_table(study: Mapping[str, Any]) -> str:
  """Markdown: bias / RMSE (coverage) of each law by family, and TEA's cosine and length."""
  laws = _cells(study["laws"], "law")
  gradients = _cells(study["gradients"], "estimator")
  names = list(dict.fromkeys(row["law"] for row in study["laws"]))
  rollouts = _nearest(study["config"]["num_rollouts"], _TABLE_ROLLOUTS)
  budgets = [_nearest(study["config"]["budgets"], budget) for budget in _TABLE_BUDGETS]
  budget = _nearest(study["config"]["gradient_budgets"], _TABLE_BUDGETS[0])
  header = ["rewards", "tail index"]
  header += [f"{name}, N={n}" for n in budgets for name in names]
  header += [f"TEA: cosine, length - 1 (N={budget})", "tail_influence"]
  lines = []
  for family, index in _families(study).items():
    cells = [family, f"{index:g}"]
    for n in budgets:
      for name in names:
        row = laws[family, rollouts, n, name]
        covered = "" if row["coverage"] is None else f" ({100 * row['coverage']:.0f} %)"
        cells.append(f"{row['bias']:+.2f} / {row['rmse']:.2f}{covered}")
    for estimator in ("tea", "tail_influence"):
      row = gradients[family, rollouts, budget, estimator]
      cells.append(f"{row['cosine']:.2f}, {row['scale_error']:+.2f}")
    lines.append(cells)
  note = f"m = {rollouts}; bias / RMSE (coverage of 95 % intervals)."
  return f"{markdown_table(header, lines)}\n\n{note}"


def advice(study: Mapping[str, Any]) -> list[str]:
  """One sentence a family: which law, and how far it carries."""
  laws = _cells(study["laws"], "law")
  names = list(dict.fromkeys(row["law"] for row in study["laws"] if row["coverage"] is not None))
  rollouts = _nearest(study["config"]["num_rollouts"], _TABLE_ROLLOUTS)
  near, far = (_nearest(study["config"]["budgets"], n) for n in (_TABLE_BUDGETS[0], 10**9))
  sentences = []
  for family in _families(study):
    # Errors grow with N by orders of magnitude: their logarithms are averaged.
    def typical(name: str, family: str = family) -> float:
      errors = [row["rmse"] for key, row in laws.items() if key[0] == family and key[3] == name]
      return float(np.mean(np.log(errors)))

    best = min(names, key=typical)
    close, wide = laws[family, rollouts, near, best], laws[family, rollouts, far, best]
    trust = "can be trusted" if close["coverage"] >= 0.9 else "are too narrow"
    sentences.append(
      f"{family}: use `{best}`; from {rollouts} rewards it misses best-of-{near} by "
      f"{close['rmse']:.2f} and best-of-{far} by {wide['rmse']:.2f} (bias {wide['bias']:+.2f}), "
      f"and its intervals {trust} at {near} ({100 * close['coverage']:.0f} %)."
    )
  return sentences


def draw_errors(path: pathlib.Path, study: Mapping[str, Any]) -> None:
  """Heat map: RMSE of each law over N (columns), family and m (rows), on a logarithmic scale."""
  laws = _cells(study["laws"], "law")
  names = list(dict.fromkeys(row["law"] for row in study["laws"]))
  config, families = study["config"], list(_families(study))
  labels = [f"{family}, m={m}" for family in families for m in config["num_rollouts"]]
  figure = new_figure(3.0 * len(names) + 1.5, 0.22 * len(labels) + 1.2)
  axes = figure.subplots(1, len(names), squeeze=False, sharey=True)[0]
  image = None
  for axis, name in zip(axes, names, strict=True):
    values = [
      [laws[family, m, n, name]["rmse"] for n in config["budgets"]]
      for family in families
      for m in config["num_rollouts"]
    ]
    image = axis.imshow(np.log10(values), aspect="auto", cmap="viridis", vmin=-1, vmax=1)
    axis.set_title(name, fontsize=9)
    axis.set_xticks(range(len(config["budgets"])), [str(n) for n in config["budgets"]], fontsize=7)
    axis.set_xlabel("N")
  axes[0].set_yticks(range(len(labels)), labels, fontsize=6)
  bar = figure.colorbar(image, ax=list(axes), ticks=[-1, -0.5, 0, 0.5, 1])
  bar.ax.set_yticklabels(["0.1", "0.3", "1", "3", "10"])
  bar.set_label("RMSE of the prediction")
  save_png(figure, path)


def _families(study: Mapping[str, Any]) -> dict[str, float]:
  return {row["family"]: row["tail_index"] for row in study["laws"]}


def _cells(rows: Any, kind: str) -> dict[tuple[str, int, int, str], Mapping[str, Any]]:
  return {(row["family"], row["num_rollouts"], row["budget"], row[kind]): row for row in rows}


def _nearest(values: Any, wanted: float) -> int:
  return min(values, key=lambda value: abs(value - wanted))
