"""Cells of tables from the results.json that a comparison of policies left."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from tea_jax.evaluation.bootstrap import seed_interval


class StoredComparison:
  """A stored comparison, read at some budgets.

  Attributes:
    policies: labels, in the order of the evaluation.
  """

  def __init__(self, path: str | pathlib.Path, budgets: Sequence[int]):
    """Args:
    path: of results.json.
    budgets: N of the columns, among those that were evaluated.
    """
    self._results: dict[str, Any] = json.loads(pathlib.Path(path).read_text())
    self._columns = [self._results["budgets"].index(n) for n in budgets]
    self.policies = list(self._results["frontier"])

  def frontier(self, policy: str) -> list[str]:
    """Best of N of a policy."""
    return [f"{v:.2f}" for v in self.values(policy)]

  def values(self, policy: str) -> Float[np.ndarray, "num_budgets"]:
    """Best of N of a policy, as numbers."""
    return self._at_budgets(self._results["frontier"][policy]["estimate"])

  def difference(self, policy: str, baseline: str) -> list[str] | None:
    """Difference to a baseline with its interval over prompts; None if it was not compared."""
    paired: Mapping[str, Any] | None = self._results["difference"][baseline].get(policy)
    if paired is None:
      return None
    columns = [self._at_budgets(paired[key]) for key in ("estimate", "low", "high")]
    return [_interval(*column) for column in zip(*columns)]

  def by_seed(self, policy: str, baseline: str) -> Float[np.ndarray, "seeds num_budgets"]:
    """Difference to a baseline of each pair of runs."""
    return self._at_budgets(self._results["difference_by_seed"][baseline][policy]["seeds"])

  def last_kl(self, policy: str) -> list[float]:
    """KL to the base over the last ten steps, of each run."""
    return self._results["kl_last_10_steps"][policy]

  def _at_budgets(self, values: Any) -> np.ndarray:
    return np.asarray(values)[..., self._columns]


def over_runs(values: Float[np.ndarray, "runs num_budgets"]) -> list[str]:
  """Mean over runs with its interval."""
  mean = seed_interval(values)
  return [_interval(*column) for column in zip(mean.estimate, mean.low, mean.high)]


def each_run(values: Float[np.ndarray, "runs num_budgets"]) -> list[str]:
  """The values of all runs in one cell."""
  return [" ".join(f"{v:+.2f}" for v in column) for column in values.T]


def _interval(estimate: float, low: float, high: float) -> str:
  return f"{estimate:+.2f} [{low:+.2f}, {high:+.2f}]"
