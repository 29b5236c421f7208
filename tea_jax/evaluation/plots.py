"""Figures: the best-of-N frontier, the reward distribution with its tail, the QQ plot.

Matplotlib is imported when a figure is drawn, and used without its global state, so figures can be
drawn from any thread and without a display.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.ndimage import gaussian_filter1d
from scipy.special import ndtri

from tea_jax.evaluation.best_of_n import checked_rewards
from tea_jax.evaluation.bootstrap import Interval
from tea_jax.evaluation.qq_linearity import DEFAULT_PROBABILITIES
from tea_jax.runtime.figures import new_figure, save_png

# Distinguishable under the common colour-vision deficiencies (Okabe and Ito).
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7A5C00")
_LINES = ("-", "--", ":", "-.")
_BASE_COLOR = "#5B5B5B"
_BINS = 200
_SMOOTHING = 0.02  # of the plotted range, the standard deviation of the kernel
_TAIL = 0.95  # pooled quantile from which the inset starts


def frontier_figure(
  path: str | os.PathLike[str],
  budgets: Sequence[int],
  frontiers: Mapping[str, Interval],
  *,
  title: str = "Best-of-N on held-out prompts",
  differences: Mapping[str, Interval] | None = None,
  baseline: str | None = None,
) -> None:
  """Best-of-N reward over N with interval bands; beside it the paired differences.

  Args:
    path: of the PNG.
    budgets: K values of N, shown on a logarithmic axis.
    frontiers: method -> interval with arrays `[K]`.
    title: of the figure.
    differences: method (of `frontiers`) -> paired difference to `baseline`, arrays `[K]`; None for
      one panel.
    baseline: name of the method that the differences are to.
  """
  figure = new_figure(10.5 if differences else 5.6, 4.2)
  axes = figure.subplots(1, 2 if differences else 1, squeeze=False)[0]
  styles = line_styles(frontiers)
  for name, interval in frontiers.items():
    _band(axes[0], budgets, interval, styles[name], name)
  axes[0].set_ylabel("reward of the best of N")
  axes[0].set_title(title)
  axes[0].legend(frameon=False)
  if differences:
    axes[1].axhline(0.0, color="black", linewidth=0.8)
    for name, interval in differences.items():
      _band(axes[1], budgets, interval, styles[name], name)
    axes[1].set_ylabel(f"difference to {baseline}")
    axes[1].set_title("Paired difference, 95 % over prompts")
    axes[1].legend(frameon=False)
  for axis in axes:
    axis.set_xscale("log", base=2)
    axis.set_xticks(budgets, [str(budget) for budget in budgets])
    axis.set_xlabel("N")
  save_figure(figure, path)


def reward_distribution_figure(
  path: str | os.PathLike[str],
  rewards: Mapping[str, Float[np.ndarray, "..."]],
  *,
  title: str = "Rewards of all held-out completions",
) -> None:
  """Densities of the pooled rewards, with the upper tail in an inset.

  All methods share bins, range and kernel: a density-normalised histogram smoothed by a Gaussian.
  The inset shows the share of completions above a reward on a logarithmic axis, unsmoothed: what
  decides the best of many.

  Args:
    path: of the PNG.
    rewards: method -> rewards of any shape; NaN (not scored) is left out.
    title: of the figure.
  """
  pooled = {name: np.ravel(values)[~np.isnan(np.ravel(values))] for name, values in rewards.items()}
  if not pooled or not all(values.size for values in pooled.values()):
    raise ValueError("a reward distribution needs at least one scored reward of every method")
  low = min(float(np.quantile(values, 0.001)) for values in pooled.values())
  high = max(float(values.max()) for values in pooled.values())
  margin = 0.04 * max(high - low, 1e-6)
  edges = np.linspace(low - margin, high + margin, _BINS + 1)
  centres = (edges[1:] + edges[:-1]) / 2
  figure = new_figure(6.4, 4.4)
  axis = figure.subplots()
  # Above the curves' right ends, where there is room: densities fall off towards large rewards.
  inset = axis.inset_axes((0.62, 0.42, 0.36, 0.40))
  styles = line_styles(pooled)
  start = min(float(np.quantile(values, _TAIL)) for values in pooled.values())
  for name, values in pooled.items():
    density, _ = np.histogram(values, bins=edges, density=True)
    density *= np.mean((values >= edges[0]) & (values <= edges[-1]))
    smooth = gaussian_filter1d(density, _SMOOTHING * _BINS, mode="constant")
    axis.plot(centres, smooth, **styles[name], label=name)
    # Up to the curves' height: the legend is above.
    axis.axvline(values.mean(), ymax=0.9, color=styles[name]["color"], linewidth=0.8, linestyle=":")
    tail = np.sort(values[values >= start])
    above = np.arange(tail.size, 0, -1) / values.size
    inset.plot(tail, above, **styles[name], drawstyle="steps-pre")
  inset.set_yscale("log")
  inset.set_xlim(start, edges[-1])
  inset.set_title("upper tail: share at or above", fontsize="small")
  inset.tick_params(labelsize="small")
  axis.set_ylim(0.0, 1.12 * axis.dataLim.ymax)
  axis.set_xlabel("reward (dotted: mean)")
  axis.set_ylabel("density")
  axis.set_title(title)
  axis.legend(frameon=False, loc="upper right", ncols=min(len(pooled), 3))
  save_figure(figure, path)


def qq_figure(
  path: str | os.PathLike[str],
  rewards: Mapping[str, Float[np.ndarray, "P n"]],
  *,
  probabilities: Float[np.ndarray, "Q"] | None = None,
  title: str = "Upper quantiles of a prompt's rewards, standardised",
) -> None:
  """Median and 10-90 % range over prompts of standardised upper quantiles against normal ones.

  Args:
    path: of the PNG.
    rewards: method -> `[P, n]`.
    probabilities: in (0, 1); by default those of `qq_linearity`.
    title: of the figure.
  """
  levels = DEFAULT_PROBABILITIES if probabilities is None else np.asarray(probabilities)
  normal = ndtri(levels)
  figure = new_figure(5.6, 4.4)
  axis = figure.subplots()
  styles = line_styles(rewards)
  axis.plot(normal, normal - normal.mean(), color="black", linewidth=0.8, label="Gaussian tail")
  for name, values in rewards.items():
    quantiles = np.quantile(checked_rewards(values), levels, axis=1)  # [Q, P]
    centred = quantiles - quantiles.mean(axis=0)
    slope = (normal - normal.mean()) @ centred / np.sum((normal - normal.mean()) ** 2)
    standard = centred[:, slope > 0] / slope[slope > 0]
    if standard.size:
      lower, middle, upper = np.quantile(standard, [0.1, 0.5, 0.9], axis=1)
      axis.plot(normal, middle, **styles[name], label=name)
      axis.fill_between(normal, lower, upper, color=styles[name]["color"], alpha=0.15, linewidth=0)
  axis.set_xlabel("normal quantile")
  axis.set_ylabel("(reward quantile - mean) / fitted scale")
  axis.set_title(title)
  axis.legend(frameon=False)
  save_figure(figure, path)


def line_styles(names: Iterable[str]) -> dict[str, dict[str, str]]:
  """Colour and line style of each method, no two alike; the untrained policy is grey."""
  others = [name for name in names if name != "base"]
  styles = {
    name: {
      "color": COLORS[index % len(COLORS)],
      "linestyle": _LINES[index // len(COLORS) % len(_LINES)],
    }
    for index, name in enumerate(others)
  }
  return {name: styles.get(name, {"color": _BASE_COLOR, "linestyle": "-"}) for name in names}


def _band(
  axis: Any, budgets: Sequence[int], interval: Interval, style: Mapping[str, str], label: str
) -> None:
  axis.plot(budgets, interval.estimate, **style, marker="o", markersize=3.5, label=label)
  axis.fill_between(
    budgets, interval.low, interval.high, color=style["color"], alpha=0.15, linewidth=0
  )


def save_figure(figure: Any, path: str | os.PathLike[str]) -> None:
  """Writes a PNG whole, with the look that all figures share."""
  for axis in figure.axes:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(visible=True, linewidth=0.4, alpha=0.4)
  save_png(figure, path)
