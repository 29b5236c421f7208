"""Tables for rewards that are right or wrong: pass@k and maj@k with intervals over prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tea_jax.evaluation.best_of_n import default_budgets
from tea_jax.evaluation.bootstrap import prompt_bootstrap
from tea_jax.evaluation.comparison import Runs
from tea_jax.evaluation.pass_at_k import majority_at_k, pass_at_k
from tea_jax.rewards.verifiers import extract_boxed


def is_checkable(runs: Runs) -> bool:
  """True if every reward is 0 or 1, so that completions are right or wrong."""
  return all(
    np.isin(records.rewards, (0.0, 1.0)).all() for group in runs.values() for records in group
  )


def accuracy_rows(
  runs: Runs,
  budgets: Sequence[int] | None = None,
  *,
  answer: Callable[[str], str | None] = extract_boxed,
) -> list[list[str]]:
  """Rows `[method, metric, value at each k]` of pass@k, and of maj@k where answers can be read.

  Args:
    runs: method -> records with rewards 0 and 1.
    budgets: values of k; by default powers of two up to n.
    answer: reads the answer that votes in maj@k out of a completion, None where there is none.
  """
  first = next(iter(runs.values()))[0]
  budgets = default_budgets(first.num_samples, "exact") if budgets is None else budgets
  rows = []
  for name, group in runs.items():
    correct = [records.rewards == 1.0 for records in group]
    answers = [
      [[answer(text) for text in row] for row in records.samples.completions] for records in group
    ]
    passed = [np.mean([pass_at_k(c, k) for c in correct], axis=0) for k in budgets]
    rows.append([name, "pass@k", *map(_percent, passed)])
    if any(a is not None for table in answers for row in table for a in row):
      voted = np.mean([majority_at_k(a, c, budgets) for a, c in zip(answers, correct)], axis=0)
      rows.append([name, "maj@k", *map(_percent, voted.T)])
  return rows


def _percent(values: np.ndarray) -> str:
  return f"{prompt_bootstrap(100 * values):.1f}"
