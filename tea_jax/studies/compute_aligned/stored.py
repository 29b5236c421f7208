"""The short tables of a stored proteins.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tea_jax.evaluation.report_tables import markdown_table


def protein_table(
  found: Mapping[str, Any],
  *,
  labels: Mapping[str, str] | None = None,
  against: str = "",
  at: int = 64,
) -> str:
  """Markdown: best of 1, 16 and 64 and the KL of every rule.

  Args:
    found: what `protein_runs.summarize` returned.
    labels: the rules that are shown, and what they are called; all by default.
    against: a rule; adds the difference to it, with its interval over seeds.
    at: N of the difference.
  """
  labels = labels or {name: name for name in found["best_of_n"]}
  shown = [found["budgets"].index(n) for n in (1, 16, 64)]
  rows = []
  for name, label in labels.items():
    means = np.mean(found["best_of_n"][name], axis=0)
    kl = f"{np.mean(found['kl'][name]):.2f}" if name in found["kl"] else "0"
    row = [label, *(f"{means[i]:.2f}" for i in shown), kl]
    if against:
      ahead = found["minus_first"].get(name, {}).get(str(at))
      row.append("{:+.2f} [{:+.2f}, {:+.2f}]".format(*ahead) if ahead else "")
    rows.append(row)
  head = ["trained by", "best of 1", "best of 16", "best of 64", "KL"]
  return markdown_table([*head, f"- {against.split(':')[0]} at {at}"] if against else head, rows)
