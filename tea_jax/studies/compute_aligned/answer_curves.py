"""pass@k and maj@k of trained policies by prompt, and their tables with paired intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from tea_jax.evaluation.bootstrap import pooled_bootstrap, seed_interval
from tea_jax.evaluation.pass_at_k import majority_at_k, pass_at_k
from tea_jax.evaluation.records import Records
from tea_jax.evaluation.report_tables import markdown_table
from tea_jax.rewards.verifiers import answer_reader
from tea_jax.studies.compute_aligned.published import Curve

Metric = Literal["pass", "majority"]
SYMBOLS: Mapping[str, str] = {"pass": "pass", "majority": "maj"}


def budget_curves(
  records: Records, budgets: Sequence[int], *, metric: Metric, answer_pattern: str = ""
) -> Float[np.ndarray, "P K"]:
  """`[P, K]` percent: pass@k or maj@k of each prompt; an answer is right where its reward is 1.

  Args:
    records: of one policy.
    budgets: k, at most the completions of a prompt.
    metric: "pass" or "majority".
    answer_pattern: of the answer that votes, see `answer_reader`.
  """
  correct = records.rewards == 1.0
  if metric == "pass":
    return 100 * np.stack([pass_at_k(correct, k) for k in budgets], axis=1)
  read = answer_reader(answer_pattern)
  answers = [[read(text) for text in row] for row in records.samples.completions]
  return 100 * majority_at_k(answers, correct, budgets)


def differences(
  curves: Mapping[str, Float[np.ndarray, "S P K"]], first: str, budgets: Sequence[int]
) -> dict[str, Any]:
  """Method -> budget -> the difference to `first` with its two 95 % intervals; JSON.

  Each cell is `[mean, low, high, low over seeds, high over seeds]`: the first interval resamples
  prompts, for these runs; the second is Student's t over runs, None with one seed. Runs are paired
  by seed, so a method with another number of them is left out.
  """
  found = {}
  for name, values in curves.items():
    if name == first or len(values) != len(curves[first]):
      continue
    prompts = pooled_bootstrap(values, curves[first])
    runs = (values - curves[first]).mean(axis=1)
    over = seed_interval(runs) if len(runs) > 1 else None
    found[name] = {
      str(k): [
        *(float(x[i]) for x in (prompts.estimate, prompts.low, prompts.high)),
        *((None, None) if over is None else (float(over.low[i]), float(over.high[i]))),
      ]
      for i, k in enumerate(budgets)
    }
  return found


def curve_table(
  curves: Mapping[str, Sequence[Sequence[float]]],
  budgets: Sequence[int],
  *,
  metric: Metric,
  published: Mapping[str, Curve] | None = None,
) -> str:
  """Markdown: means over seeds in percent, and the paper's numbers under them."""
  rows = [[name, *(f"{v:.1f}" for v in np.mean(seeds, axis=0))] for name, seeds in curves.items()]
  rows += [
    [f"published: {name}", *(f"{curve[k]:.1f}" if k in curve else "" for k in budgets)]
    for name, curve in (published or {}).items()
  ]
  return markdown_table(["objective", *_head(budgets, metric)], rows)


def difference_table(
  minus_first: Mapping[str, Mapping[str, Sequence[float | None]]],
  budgets: Sequence[int],
  *,
  metric: Metric,
) -> str:
  """Markdown: differences with the interval over prompts, and over seeds where there are some."""
  rows = []
  for name, cells in minus_first.items():
    rows.append(
      [name, "prompts", *(f"{c[0]:+.1f} [{c[1]:.1f}, {c[2]:.1f}]" for c in cells.values())]
    )
    if any(c[3] is not None for c in cells.values()):
      over_runs = (f"{c[0]:+.1f} [{c[3]:.1f}, {c[4]:.1f}]" for c in cells.values())
      rows.append([name, "runs", *over_runs])
  return markdown_table(["objective", "interval over", *_head(budgets, metric)], rows)


def _head(budgets: Sequence[int], metric: Metric) -> list[str]:
  return [f"{SYMBOLS[metric]}@{k}" for k in budgets]
