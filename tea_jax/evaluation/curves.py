"""Training curves: reward, best-of-N predicted and measured, KL, entropy, length over the steps."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from tea_jax.evaluation.plots import line_styles, save_figure
from tea_jax.runs.log import read_jsonl
from tea_jax.runtime.figures import new_figure

Lines = Sequence[Mapping[str, Any]]

_PANELS = (
  ("reward", ("reward/mean",)),
  ("best of N", ("predicted_best_of_budget", "best_of_n")),
  ("KL to the base, nats a completion", ("kl",)),
  ("entropy, nats a token", ("entropy",)),
  ("length, tokens", ("completions/mean_length",)),
)


def curves_figure(path: str | os.PathLike[str], runs: Mapping[str, Sequence[Lines]]) -> None:
  """Draws one line a method, the mean over its seeds, and each seed faintly.

  "best of N" shows the prediction for the rule's budget and, dotted, the best of the largest power
  of two of rollouts that a step measures. Quantities that no run has are left out.

  Args:
    path: of the PNG.
    runs: method -> the lines of metrics.jsonl of each of its seeds.
  """
  panels = [(title, keys) for title, keys in _PANELS if any(_series(runs, key) for key in keys)]
  figure = new_figure(3.4 * max(len(panels), 1), 3.2)
  axes = figure.subplots(1, max(len(panels), 1), squeeze=False)[0]
  styles = line_styles(runs)
  for axis, (title, keys) in zip(axes, panels, strict=False):
    for key, linestyle in zip(keys, (None, ":"), strict=False):
      for name, seeds in _series(runs, key).items():
        style = styles[name] | ({} if linestyle is None else {"linestyle": linestyle})
        for steps, values in seeds if len(seeds) > 1 else ():
          axis.plot(steps, values, color=style["color"], linewidth=0.6, alpha=0.3)
        axis.plot(*mean_curve(seeds), **style, label=name if linestyle is None else None)
    axis.set_title(title, fontsize=10)
    axis.set_xlabel("step")
  if len(runs) > 1:
    axes[0].legend(frameon=False)
  save_figure(figure, path)


def draw_curves(folder: str | os.PathLike[str]) -> pathlib.Path:
  """Writes curves.png of a run folder beside its metrics.jsonl."""
  folder = pathlib.Path(folder)
  curves_figure(folder / "curves.png", {folder.name: [read_jsonl(folder / "metrics.jsonl")]})
  return folder / "curves.png"


def mean_curve(
  seeds: Sequence[tuple[np.ndarray, np.ndarray]],
) -> tuple[Float[np.ndarray, "steps"], Float[np.ndarray, "steps"]]:
  """Mean over the seeds at each step that all of them have.

  Args:
    seeds: steps and values of each.
  """
  steps = seeds[0][0]
  for others, _ in seeds[1:]:
    steps = np.intersect1d(steps, others)
  return steps, np.mean([v[np.searchsorted(s, steps)] for s, v in seeds], axis=0)


def _series(
  runs: Mapping[str, Sequence[Lines]], key: str
) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
  """method -> (steps, values) of each seed that has the quantity."""
  found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
  for name, seeds in runs.items():
    for lines in seeds:
      at = _largest_measured(lines) if key == "best_of_n" else key
      points = [(line["step"] + 1, line[at]) for line in lines if line.get(at) is not None]
      if points:
        steps, values = np.array(points, np.float64).T
        found.setdefault(name, []).append((steps, values))
  return found


def _largest_measured(lines: Lines) -> str:
  sizes = {
    int(key.rpartition("/")[2]) for line in lines for key in line if key.startswith("best_of_n/")
  }
  return f"best_of_n/{max(sizes, default=1)}"
