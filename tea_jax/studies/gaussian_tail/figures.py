"""Figures of the Gaussian-tail diagnostic: scaling with m, error over (m, B), crossovers.

matplotlib is an extra: it is imported when a figure is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tea_jax.runtime.figures import new_figure, save_png, styled
from tea_jax.studies.gaussian_tail.summary import LABELS, Row, Slope, Summary

# Okabe and Ito's palette: told apart by every kind of colour vision.
_COLORS = {
  "tea": "#0072B2",
  "tail_influence": "#E69F00",
  "prefix": "#D55E00",
  "prefix_larger": "#CC79A7",
  "subset_averaged": "#009E73",
}
_MARKERS = {
  "tea": "o",
  "tail_influence": "D",
  "prefix": "s",
  "prefix_larger": "^",
  "subset_averaged": "v",
}
_STYLE = {
  "font.size": 10,
  "axes.titlesize": 11,
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.grid": True,
  "grid.alpha": 0.25,
  "grid.linewidth": 0.6,
  "legend.frameon": False,
  "figure.dpi": 150,
}


def _rollout_axis(axis: Any, grid: Sequence[int]) -> None:
  axis.set_xscale("log", base=2)
  axis.set_xticks(grid, [str(m) for m in grid])
  axis.minorticks_off()
  axis.set_xlabel("rollouts per prompt, $m$")


# Estimators that would hide each other are drawn beside each other.
_SHIFT = {"prefix": 0.96, "prefix_larger": 1.04}


def _slope_label(slope: Slope | None, bound: tuple[float, int, int] | None) -> str:
  if slope is not None:
    text = f"slope {slope.slope:.2f}"
  elif bound is not None:
    text = f"slope < {bound[0]:.1f}"
  else:
    text = "in the noise"
  return text.replace("-", "−")


def _draw_estimator(
  axis: Any,
  rows: list[Row],
  kind: str,
  slope: Slope | None,
  bound: tuple[float, int, int] | None,
) -> None:
  estimator = rows[0].estimator
  color, marker = _COLORS[estimator], _MARKERS[estimator]
  label = f"{LABELS[estimator]}: {_slope_label(slope, bound)}"
  shift = _SHIFT.get(estimator, 1.0)
  grid = shift * np.array([row.num_rollouts for row in rows])
  if kind == "variance":
    values = np.array([row.variance for row in rows])
    errors = np.array([row.variance_error for row in rows])
    resolved = np.ones(len(rows), bool)
  else:
    resolved = np.array([row.resolved for row in rows])
    values = np.array([row.bias if row.resolved else row.bias_limit for row in rows])
    errors = np.array([row.bias_error for row in rows])
  axis.errorbar(
    grid[resolved],
    values[resolved],
    errors[resolved],
    color=color,
    marker=marker,
    linestyle="none",
    markersize=5.5,
    capsize=2,
    label=label,
  )
  if not resolved.all():
    # Not told from noise: a bar at the upper limit, with an arrow down.
    axis.errorbar(
      grid[~resolved],
      values[~resolved],
      yerr=values[~resolved] * 0.45,
      uplims=True,
      color=color,
      marker="_",
      linestyle="none",
      markersize=9,
      alpha=0.75,
    )
  if slope is not None:
    ends = np.array([slope.num_rollouts[0], slope.num_rollouts[-1]])
    axis.plot(ends, np.exp(slope.intercept) * ends**slope.slope, color=color, linewidth=1.2)
  known = [row for row in rows if row.published is not None]
  if known:
    axis.plot(
      [shift * row.num_rollouts for row in known],
      [getattr(row.published, kind) for row in known],
      color=color,
      marker=marker,
      markerfacecolor="none",
      markersize=9.5,
      markeredgewidth=0.9,
      linestyle="none",
    )


def draw_scaling(summary: Summary, path: Path) -> None:
  """Bias and variance against m on log axes, with fitted slopes; hollow marks are published.

  Args:
    summary: of a run.
    path: PNG to write.
  """
  with styled(_STYLE):
    figure = new_figure(11.0, 4.9)
    axes = figure.subplots(1, 2)
    grid = sorted({row.num_rollouts for row in summary.rows})
    for axis, kind, slopes, title in (
      (
        axes[0],
        "bias",
        summary.bias_slopes,
        "Bias norm (arrow: upper limit, in the Monte-Carlo noise)",
      ),
      (axes[1], "variance", summary.variance_slopes, "Total variance of one prompt"),
    ):
      for estimator in LABELS:
        rows = summary.of(estimator)
        if rows:
          bound = summary.bias_bounds[estimator] if kind == "bias" else None
          _draw_estimator(axis, rows, kind, slopes[estimator], bound)
      axis.set_yscale("log")
      _rollout_axis(axis, grid)
      axis.set_title(title, loc="left")
      axis.legend(fontsize=8.5, loc="lower left" if kind == "bias" else "upper right")
    low, high = axes[0].get_ylim()
    axes[0].set_ylim(low / 8.0, high)
    low, high = axes[1].get_ylim()
    axes[1].set_ylim(low, high * 6.0)
    if any(row.published for row in summary.rows):
      figure.supxlabel(
        "filled: this run; hollow: published; lines: weighted least-squares fits", fontsize=9
      )
    save_png(figure, path, dpi=160)


def log_error_ratio(summary: Summary, estimator: str, batches: Sequence[int]) -> tuple[Any, Any]:
  """log10 of MSE over that of TEA: `[num_m]` the m at which both ran, `[num_batches, num_m]`."""
  tea = {row.num_rollouts: row for row in summary.of("tea")}
  rows = [row for row in summary.of(estimator) if row.num_rollouts in tea]
  sizes = np.asarray(batches, np.float64)[:, None]

  def mse(chosen: list[Row]) -> np.ndarray:
    variance = np.array([row.variance for row in chosen])
    return variance / sizes + np.square([row.bias for row in chosen])

  ratio = np.log10(mse(rows) / mse([tea[row.num_rollouts] for row in rows]))
  return np.array([row.num_rollouts for row in rows]), ratio


def _edges(centres: np.ndarray) -> np.ndarray:
  logs = np.log2(centres)
  middle = (logs[1:] + logs[:-1]) / 2.0
  return np.concatenate([[2 * logs[0] - middle[0]], middle, [2 * logs[-1] - middle[-1]]])


def draw_heat_map(summary: Summary, batches: Sequence[int], path: Path) -> None:
  """log10 MSE ratio to TEA over (m, B), one panel for each Prefix-TEA, with the zero contour.

  Args:
    summary: of a run.
    batches: B, increasing, at least two.
    path: PNG to write.
  """
  panels = []
  for estimator in ("prefix", "prefix_larger", "subset_averaged"):
    grid, ratio = log_error_ratio(summary, estimator, batches)
    if len(grid) >= 2:
      panels.append((estimator, grid, ratio))
  with styled({**_STYLE, "axes.grid": False}):
    figure = new_figure(4.0 * len(panels) + 1.6, 4.4)
    axes = figure.subplots(1, max(len(panels), 1), sharey=True, squeeze=False)
    limit = max([float(np.abs(ratio).max()) for _, _, ratio in panels], default=1.0)
    mesh = None
    heights = np.log2(np.asarray(batches, np.float64))
    for axis, (estimator, grid, ratio) in zip(axes[0], panels):
      mesh = axis.pcolormesh(
        _edges(grid), _edges(np.asarray(batches)), ratio, cmap="RdBu_r", vmin=-limit, vmax=limit,
        rasterized=True,
      )  # fmt: skip
      if ratio.min() < 0.0 < ratio.max():
        axis.contour(np.log2(grid), heights, ratio, levels=[0.0], colors="black", linewidths=1.6)
      axis.set_xticks(np.log2(grid), [str(m) for m in grid], rotation=45)
      ticks = [b for b in batches if (round(math.log2(b)) % 4 == 0)]
      axis.set_yticks(np.log2(ticks), [str(b) for b in ticks])
      axis.set_xlabel("rollouts per prompt, $m$")
      axis.set_title(f"{LABELS[estimator]} / TEA", loc="left")
    axes[0, 0].set_ylabel("prompts averaged over, $B$")
    if mesh is not None:
      bar = figure.colorbar(mesh, ax=axes[0].tolist(), pad=0.02)
      bar.set_label("log$_{10}$ MSE ratio (blue: smaller error than TEA)")
    save_png(figure, path, dpi=160)


def draw_crossovers(summary: Summary, path: Path) -> None:
  """B*, the batch from which on each estimator has a smaller error than TEA, against m.

  Args:
    summary: of a run.
    path: PNG to write.
  """
  with styled(_STYLE):
    figure = new_figure(6.4, 4.4)
    axis = figure.subplots()
    for estimator in ("prefix", "prefix_larger", "subset_averaged"):
      rows = [row for row in summary.of(estimator) if row.crossover and row.crossover < math.inf]
      color, marker = _COLORS[estimator], _MARKERS[estimator]
      if rows:
        axis.errorbar(
          [row.num_rollouts for row in rows],
          [row.crossover for row in rows],
          [row.crossover_error for row in rows],
          color=color, marker=marker, markersize=5.5, capsize=2, label=LABELS[estimator],
        )  # fmt: skip
      known = [row for row in summary.of(estimator) if row.published_crossover]
      if known:
        axis.plot(
          [row.num_rollouts for row in known],
          [row.published_crossover for row in known],
          color=color, marker=marker, markerfacecolor="none", markersize=9.5, linestyle=":",
          linewidth=0.9, label=f"{LABELS[estimator]}, from published table",
        )  # fmt: skip
    axis.set_yscale("log")
    _rollout_axis(axis, sorted({row.num_rollouts for row in summary.rows}))
    axis.set_ylabel("crossover $B^*$ (prompts)")
    axis.set_title("Prompts from which on the error is below TEA's", loc="left")
    if axis.get_legend_handles_labels()[0]:
      axis.legend(fontsize=8.5)
    save_png(figure, path, dpi=160)
