"""Searches on the two-level Gaussian toy, where an oracle knows the law of every state.

Each budget has its own problems, the same for every method: what a search gains over best-of-N, and
what it loses to the oracle by where it commits.

Source: arXiv 2602.01485, whose regret bounds this illustrates.
"""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from tea_jax.evaluation import plots
from tea_jax.evaluation.report_tables import markdown_table
from tea_jax.runtime.files import write_text
from tea_jax.scaling import (
  Schedule,
  SearchResult,
  TwoLevelGaussian,
  best_of_n,
  branching_best_of_n,
  mean_guided_search,
  scaling_law_search,
  ucb_search,
)
from tea_jax.tail.gaussian import expected_maximum

BUDGETS = (30, 60, 100, 300, 1000, 2000)


def _fixed_states(source: TwoLevelGaussian, budget: int) -> SearchResult:
  """Half of the rollouts explore four states: their laws become known as N grows."""
  schedule = Schedule(samples=max(budget // 10, 2), states=4)
  return scaling_law_search(source, budget, schedule=schedule)


COMMITTING: dict[str, Callable[..., SearchResult]] = {
  "scaling_law_search": scaling_law_search,
  "scaling_law_search, tail 1/2": functools.partial(scaling_law_search, tail_fraction=0.5),
  "scaling_law_search, m = N / 10, K = 4": _fixed_states,
  "mean_guided_search": mean_guided_search,
  "ucb_search": ucb_search,
}
_METHODS = {**COMMITTING, "branching_best_of_n": branching_best_of_n}


def run_toy(
  budgets: Sequence[int] = BUDGETS,
  *,
  num_problems: int = 4000,
  seed: int = 0,
  say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
  """Gain over best-of-N and regret of every method at every budget.

  Args:
    budgets: N.
    num_problems: of each budget.
    seed: of the problems.
    say: called with a line after each budget.

  Returns:
    JSON: `budgets`, `num_problems`, `gain` and `regret` (method -> mean and standard error at each
    budget). Regret is that of `commitment_regret`, of methods that commit.
  """
  gain: dict[str, list[list[float]]] = {name: [] for name in _METHODS}
  regret: dict[str, list[list[float]]] = {name: [] for name in COMMITTING}
  for budget in budgets:
    plain = best_of_n(TwoLevelGaussian(num_problems, seed=seed + 1), budget).best_reward
    for name, method in _METHODS.items():
      source = TwoLevelGaussian(num_problems, seed=seed)
      found = method(source, budget)
      difference = found.best_reward - plain
      gain[name].append(_mean_and_error(difference))
      if name in COMMITTING:
        regret[name].append(_mean_and_error(commitment_regret(source, found, budget)))
    say(f"N = {budget}: scaling_law_search - best_of_n {gain['scaling_law_search'][-1][0]:+.3f}")
  return {"budgets": list(budgets), "num_problems": num_problems, "gain": gain, "regret": regret}


def commitment_regret(
  source: TwoLevelGaussian, result: SearchResult, budget: int
) -> Float[np.ndarray, "P"]:
  """`[P]` best-of-N value of the best candidate minus that of the one the search committed to.

  The candidates are the prompt, rewards N(0, 2), and the states s that the search had, N(s, 1). The
  oracle among them knows s.

  Args:
    source: where the search drew, with scales 1.
    result: of a search that commits.
    budget: N.
  """
  largest = expected_maximum(budget)
  states = np.maximum(result.candidates[:, 1:] - 1, 0)
  values = np.take_along_axis(source.states, states, axis=1) + largest
  values = np.where(result.candidates[:, 1:] > 0, values, -np.inf)
  root = np.full((len(values), 1), np.sqrt(2) * largest)
  values = np.concatenate([root, values], axis=1)
  column = np.argmax(result.candidates == result.focus[:, None], axis=1)
  return values.max(axis=1) - np.take_along_axis(values, column[:, None], axis=1)[:, 0]


def _mean_and_error(values: np.ndarray) -> list[float]:
  return [float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))]


def write_toy(
  folder: str | pathlib.Path, found: dict[str, Any], *, figures: bool = True
) -> pathlib.Path:
  """Writes toy.json, report.md and regret.png; returns the report's path."""
  path = pathlib.Path(folder)
  path.mkdir(parents=True, exist_ok=True)
  write_text(path / "toy.json", json.dumps(found, indent=1) + "\n")
  sections = [
    "# Searches on the two-level Gaussian toy",
    f"{found['num_problems']} problems a budget; mean and standard error.",
    "## Reward above best-of-N",
    toy_table(found, "gain"),
    "## Regret: below the oracle that knows the candidates' laws",
    toy_table(found, "regret"),
  ]
  if figures:
    _draw(path / "regret.png", found)
    sections.append("![Gain over best-of-N and regret against N](regret.png)")
  write_text(path / "report.md", "\n\n".join(sections) + "\n")
  return path / "report.md"


def toy_table(found: dict[str, Any], what: str) -> str:
  """Markdown: a row a method, a column a budget; `what` is "gain" or "regret"."""
  sign = "+" if what == "gain" else ""
  rows = [
    [name, *(f"{mean:{sign}.2f} ({error:.2f})" for mean, error in cells)]
    for name, cells in found[what].items()
  ]
  return markdown_table(["method", *(f"N = {n}" for n in found["budgets"])], rows)


def _draw(path: pathlib.Path, found: dict[str, Any]) -> None:
  figure = plots.new_figure(10, 4)
  styles = plots.line_styles(found["gain"])
  for axes, what in zip(figure.subplots(1, 2), ("gain", "regret"), strict=True):
    for name, cells in found[what].items():
      means, errors = np.transpose(cells)
      axes.errorbar(found["budgets"], means, 2 * errors, **styles[name], label=name, capsize=2)
    axes.set(xscale="log", xlabel="rollouts N")
    axes.legend(frameon=False, fontsize=7)
  figure.axes[0].set_ylabel("reward above best-of-N")
  figure.axes[1].set_ylabel("regret to the oracle's choice")
  plots.save_figure(figure, path)
