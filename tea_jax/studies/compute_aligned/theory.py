"""The theory of compute-aligned training as numbers and one figure; seconds, no model.

Source: arXiv 2604.24957, Table 1, appendices E and F.
"""

from __future__ import annotations

import itertools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from tea_jax.evaluation.plots import new_figure, save_figure
from tea_jax.evaluation.report_tables import markdown_table
from tea_jax.runtime.files import write_text
from tea_jax.strategies import (
  Strategy,
  alignment_coefficient,
  best_of_n,
  crossover_budget,
  diagonal_efficiency,
  majority,
  pass_at_n,
  plurality_partials,
)

TRAIN_BUDGETS = (1, 4, 16, 64)
TEST_BUDGETS = (1, 2, 4, 8, 16, 32, 64)
STRATEGIES: Mapping[str, Strategy] = {
  "Pass@4": pass_at_n(4),
  "Pass@16": pass_at_n(16),
  "Pass@64": pass_at_n(64),
  "Maj@8, k = 3": majority(8, 3),
  "Maj@16, k = 4": majority(16, 4),
  "Maj@64, k = 26": majority(64, 26),
}
_EXAMPLE = np.array([0.3, 0.4, 0.3])


def theory() -> dict[str, Any]:
  """Alignment coefficients, crossovers, and the efficiency of one example; JSON.

  Returns:
    `alignment` (train budget -> test budget -> gamma), `crossovers` (rows of small, large, test
    budget, and both gammas at the first whole budget), `efficiency` of plurality with N = 8 and
    p = (0.3, 0.4, 0.3).
  """
  crossovers = []
  for small, large in itertools.pairwise(TRAIN_BUDGETS):
    first = int(np.ceil(crossover_budget(small, large)))
    crossovers.append(
      {
        "small": small,
        "large": large,
        "test_budget": crossover_budget(small, large),
        "first_integer": first,
        "alignment_of_small": alignment_coefficient(small, first),
        "alignment_of_large": alignment_coefficient(large, first),
      }
    )
  partials = plurality_partials(_EXAMPLE, budget=8)
  return {
    "alignment": {
      str(train): {str(test): alignment_coefficient(train, test) for test in TEST_BUDGETS}
      for train in TRAIN_BUDGETS
    },
    "crossovers": crossovers,
    "efficiency": {
      "probabilities": _EXAMPLE.tolist(),
      "budget": 8,
      "partials": partials.tolist(),
      "diagonal_efficiency": diagonal_efficiency(partials, _EXAMPLE),
    },
  }


def write_theory(folder: pathlib.Path, *, figure: bool = True) -> pathlib.Path:
  """Writes `theory.json`, `theory.md` and `theory.png` into a folder; returns the second."""
  found = theory()
  folder.mkdir(parents=True, exist_ok=True)
  write_text(folder / "theory.json", json.dumps(found, indent=2) + "\n")
  write_text(folder / "theory.md", _report(found))
  if figure:
    _draw(folder / "theory.png", found)
  return folder / "theory.md"


def _report(found: Mapping[str, Any]) -> str:
  rows = [
    [f"Pass@{train}", *(f"{gamma:.3f}" for gamma in row.values())]
    for train, row in found["alignment"].items()
  ]
  alignment = markdown_table(["trained for", *(f"@{n}" for n in TEST_BUDGETS)], rows)
  crossovers = markdown_table(
    ["trained for", "overtakes", "at test budget"],
    [
      [f"Pass@{row['large']}", f"Pass@{row['small']}", f"{row['test_budget']:.4f}"]
      for row in found["crossovers"]
    ],
  )
  efficiency = found["efficiency"]["diagonal_efficiency"]
  return (
    f"# Compute-aligned training: theory\n\n## Alignment coefficient\n\n{alignment}\n\n"
    f"## Crossovers\n\n{crossovers}\n\n## Efficiency of the diagonal weight\n\n"
    f"Plurality of 8 votes, p = (0.3, 0.4, 0.3): a / (a - C) = {efficiency:.4f}.\n"
  )


def _draw(path: pathlib.Path, found: Mapping[str, Any]) -> None:
  figure = new_figure(11, 6.5)
  axes = figure.subplots(2, 2)
  p = np.logspace(-4, np.log10(1 - 1e-4), 400)
  log_p = jnp.log(jnp.asarray(p, jnp.float32))
  supervised, reinforcement, best = axes[0, 0], axes[0, 1], axes[1, 0]
  for name, strategy in STRATEGIES.items():
    style = "--" if name.startswith("Maj") else "-"
    supervised.semilogx(p, strategy.supervised_weight(log_p), style, label=name)
    reinforcement.semilogx(p, np.asarray(strategy.weight(log_p)) / strategy.budget, style)
  supervised.set(title="supervised weight p S'/S", xlabel="p", yscale="symlog")
  supervised.legend(frameon=False, fontsize=7)
  reinforcement.set(title="reinforcement-learning weight S'/N", xlabel="p")
  quantile = np.linspace(1e-3, 1 - 1e-3, 400)
  for budget in (2, 4, 8, 64):
    log_q = jnp.log(jnp.asarray(quantile, jnp.float32))
    weight = best_of_n(budget).weight(jnp.log1p(-jnp.exp(log_q)), log_q)
    best.plot(quantile, weight, label=f"N = {budget}")
  best.set(title="best-of-N weight N q^(N-1)", xlabel="quantile of the reward", yscale="log")
  best.set_ylim(1e-3, 100)
  best.legend(frameon=False, fontsize=7)
  _draw_matrix(axes[1, 1], found["alignment"])
  save_figure(figure, path)


def _draw_matrix(axis: Any, alignment: Mapping[str, Mapping[str, float]]) -> None:
  values = np.array([list(row.values()) for row in alignment.values()])
  axis.imshow(values, cmap="viridis", vmin=0.5, vmax=1, aspect="auto")
  for (row, column), gamma in np.ndenumerate(values):
    shade = "white" if gamma < 0.8 else "black"
    axis.text(column, row, f"{gamma:.2f}", ha="center", va="center", fontsize=7, color=shade)
  axis.set_xticks(range(len(TEST_BUDGETS)), _labels(TEST_BUDGETS))
  axis.set_yticks(range(len(TRAIN_BUDGETS)), _labels(TRAIN_BUDGETS))
  axis.set(title="alignment coefficient", xlabel="test budget", ylabel="training budget")


def _labels(budgets: Sequence[int]) -> list[str]:
  return [str(budget) for budget in budgets]
