"""Searches side by side on the same prompts and rollouts: intervals, costs, samples, report."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tea_jax.evaluation import plots
from tea_jax.evaluation.best_of_n import best_of_n_exact
from tea_jax.evaluation.bootstrap import Interval, prompt_bootstrap
from tea_jax.evaluation.report_tables import inline, markdown_table
from tea_jax.runtime.files import write_text
from tea_jax.scaling import (
  SearchResult,
  best_of_n,
  branching_best_of_n,
  mean_guided_search,
  scaling_law_search,
  ucb_search,
)
from tea_jax.scaling.rollout_pool import RolloutPool

METHODS: dict[str, Callable[..., SearchResult]] = {
  "best_of_n": best_of_n,
  "scaling_law_search": scaling_law_search,
  "branching_best_of_n": branching_best_of_n,
  "mean_guided_search": mean_guided_search,
  "ucb_search": ucb_search,
}
BASELINE = "best_of_n"

Correct = Callable[[Sequence[int], Sequence[str]], np.ndarray]
"""(indices of prompts, texts) -> whether each answer is right."""


def run_searches(
  pool: RolloutPool,
  methods: Sequence[str],
  budgets: Sequence[int],
  *,
  options: Mapping[str, Mapping[str, Any]] | None = None,
  correct: Correct | None = None,
  say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
  """Runs every method at every budget; all take their rollouts from the pool.

  Args:
    pool: of rollouts.
    methods: names of `METHODS`; `best_of_n` is always run.
    budgets: N, in any order.
    options: keyword arguments by method.
    correct: judges answers, for rm@1 (the selected answer is right) and pass@N (any is).
    say: called with a line after each search.

  Returns:
    JSON: `rows`, one for each (method, N), with values by prompt: `reward` of the selected answer,
    `tokens` generated, `equal_tokens` (best-of-N's reward at so many tokens, where the pool reaches
    so far), `focus`, and `right`, `any_right` if answers are judged; and `samples`.
  """
  unknown = sorted(set(methods) - set(METHODS))
  if unknown:
    raise ValueError(f"unknown methods {unknown}; known: {', '.join(METHODS)}")
  methods = list(dict.fromkeys([BASELINE, *methods]))
  results = {}
  for method in methods:
    for budget in sorted(budgets):
      result = METHODS[method](pool, budget, **(options or {}).get(method, {}))
      results[method, budget] = result
      say(f"{method} N={budget}: mean reward {np.nanmean(result.best_reward):+.3f}")
  widest = results[BASELINE, max(budgets)]
  root_tokens = pool.generated_tokens(widest).mean(axis=1)
  rows, samples = [], []
  for (method, budget), result in results.items():
    tokens = pool.generated_tokens(result).sum(axis=1)
    answers = pool.answers(result)
    row: dict[str, Any] = {
      "method": method,
      "budget": budget,
      "reward": result.best_reward.tolist(),
      "tokens": tokens.tolist(),
      "equal_tokens": _at_tokens(widest.rewards, tokens / root_tokens).tolist(),
      "focus": result.focus.tolist(),
      "on_state": float(np.mean(result.focus > 0)),
    }
    if correct is not None:
      row["right"], row["any_right"] = _judged(pool, result, answers, correct)
    rows.append(row)
    texts = ["" if answer is None else answer.completion.text for answer in answers]
    samples.append({"method": method, "budget": budget, "answers": texts[:4]})
  return {"rows": rows, "samples": samples}


def _at_tokens(rewards: np.ndarray, rollouts: np.ndarray) -> np.ndarray:
  """Best-of-N of each prompt at a number of rollouts of its own; NaN beyond those at hand."""
  values = np.full(len(rewards), np.nan)
  for prompt, wanted in enumerate(rollouts):
    known = rewards[prompt][~np.isnan(rewards[prompt])]
    low = int(np.floor(wanted))
    if low >= 1 and low + 1 <= len(known):
      pair = best_of_n_exact(known[None], [low, low + 1])[0]
      values[prompt] = pair[0] + (wanted - low) * (pair[1] - pair[0])
    elif low == len(known):
      values[prompt] = known.max()
  return values


def _judged(pool: RolloutPool, result: SearchResult, answers: Sequence[Any], correct: Correct):
  right, any_right = [], []
  for prompt, (nodes, numbers) in enumerate(zip(result.nodes, result.rollouts, strict=True)):
    texts = [
      pool.rollout(prompt, int(node), int(number)).completion.text
      for node, number in zip(nodes, numbers, strict=True)
    ]
    verdicts = np.asarray(correct([prompt] * len(texts), texts), bool)
    right.append(bool(answers[prompt] is not None and verdicts[result.best[prompt]]))
    any_right.append(bool(verdicts.any()))
  return right, any_right


def summary_table(study: Mapping[str, Any]) -> str:
  """Markdown: reward, paired difference to best-of-N at equal rollouts and tokens, cost."""
  base = {row["budget"]: row for row in study["rows"] if row["method"] == BASELINE}
  judged = "right" in study["rows"][0]
  header = ["method", "N", "reward", "- best-of-N [95 %]", "- best-of-N, equal tokens", "tokens"]
  header += ["committed to a state", *(["rm@1", "pass@N"] if judged else [])]
  lines = []
  for row in study["rows"]:
    reward = np.array(row["reward"])
    cells = [row["method"], str(row["budget"]), f"{np.nanmean(reward):.2f}"]
    if row["method"] == BASELINE:
      cells += ["", ""]
    else:
      cells.append(f"{_difference(reward, base[row['budget']]['reward']):+.2f}")
      cells.append(f"{_difference(reward, row['equal_tokens']):+.2f}")
    cells.append(f"{np.mean(row['tokens']):.0f}")
    branches = row["method"] in ("scaling_law_search", "mean_guided_search", "ucb_search")
    cells.append(f"{100 * row['on_state']:.0f} %" if branches else "")
    if judged:
      cells += [f"{100 * np.mean(row[name]):.1f} %" for name in ("right", "any_right")]
    lines.append(cells)
  return markdown_table(header, lines)


def _difference(values: Any, baseline: Any) -> Interval:
  difference = np.asarray(values, float) - np.asarray(baseline, float)
  known = difference[np.isfinite(difference)]
  return prompt_bootstrap(known) if known.size else Interval(np.nan, np.nan, np.nan)


def write_study(
  folder: str | pathlib.Path, study: Mapping[str, Any], *, title: str, figures: bool = True
) -> pathlib.Path:
  """Writes results.json, search.png and report.md; returns the report's path."""
  path = pathlib.Path(folder)
  path.mkdir(parents=True, exist_ok=True)
  write_text(path / "results.json", json.dumps(study, indent=1) + "\n")
  sections = [f"# {title}", summary_table(study)]
  budgets = sorted({row["budget"] for row in study["rows"]})
  if figures:
    draw(path / "search.png", study, budgets)
    sections.append("![Reward of the selected answer against N](search.png)")
  sections += ["## Selected answers", samples_table(study)]
  if study.get("settings"):
    sections += ["## Settings", f"```json\n{json.dumps(study['settings'], indent=1)}\n```"]
  write_text(path / "report.md", "\n\n".join(sections) + "\n")
  return path / "report.md"


def samples_table(study: Mapping[str, Any]) -> str:
  """Answers of the first prompts at the largest budget."""
  largest = max(row["budget"] for row in study["rows"])
  prompts = study.get("prompts", [])
  rows = [
    [inline(prompts[i]) if i < len(prompts) else str(i), sample["method"], inline(answer)]
    for sample in study["samples"]
    if sample["budget"] == largest
    for i, answer in enumerate(sample["answers"])
  ]
  return markdown_table(["prompt", "method", "answer"], sorted(rows, key=lambda row: row[0]))


def draw(path: pathlib.Path, study: Mapping[str, Any], budgets: Sequence[int]) -> None:
  """Reward against N by method, and the paired differences to best-of-N."""
  by_method: dict[str, dict[int, np.ndarray]] = {}
  for row in study["rows"]:
    by_method.setdefault(row["method"], {})[row["budget"]] = np.array(row["reward"])
  stacked = {name: np.stack([rows[n] for n in budgets], 1) for name, rows in by_method.items()}
  known = np.all([np.isfinite(values).all(axis=1) for values in stacked.values()], axis=0)
  stacked = {name: values[known] for name, values in stacked.items()}
  plots.frontier_figure(
    path,
    budgets,
    {name: prompt_bootstrap(values) for name, values in stacked.items()},
    title="Reward of the selected answer",
    differences={
      name: prompt_bootstrap(values - stacked[BASELINE])
      for name, values in stacked.items()
      if name != BASELINE
    },
    baseline=BASELINE,
  )
