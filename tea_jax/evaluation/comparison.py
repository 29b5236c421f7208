"""Several policies on the same prompts: frontiers, paired differences, rates, per-prompt values.

A method may have been trained with several seeds; `Runs` holds a list of records for each method,
one a seed. A single run (the base policy) is compared with every seed of the others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from tea_jax.evaluation.best_of_n import Method, best_of_n_frontier, default_budgets
from tea_jax.evaluation.bootstrap import (
  Interval,
  WinTieLoss,
  pooled_bootstrap,
  prompt_bootstrap,
  seed_interval,
  win_tie_loss,
)
from tea_jax.evaluation.records import Records

Runs = Mapping[str, Sequence[Records]]


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Best-of-N values of several methods.

  Attributes:
    budgets: K budgets.
    values: method -> `[S, P, K]` values by seed, prompt and budget.
    mean_lengths: method -> mean completion length in tokens.
    prompts: P texts.
    num_samples: n completions of each prompt and seed.
    method: estimator of the values.
  """

  budgets: list[int]
  values: Mapping[str, Float[np.ndarray, "S P K"]]
  mean_lengths: Mapping[str, float]
  prompts: list[str]
  num_samples: int
  method: Method

  def frontier(self, name: str, **options: int | float) -> Interval:
    """Mean over prompts and seeds with its interval, arrays over budgets."""
    return prompt_bootstrap(self.values[name].mean(axis=0), **options)  # pyright: ignore

  def difference(
    self, name: str, baseline: str, *, resample_seeds: bool = False, seed: int = 0
  ) -> Interval:
    """Paired difference of two methods, arrays over budgets; see `pooled_bootstrap`."""
    return pooled_bootstrap(*self._paired(name, baseline), resample_seeds=resample_seeds, seed=seed)

  def shift_and_widening(self, name: str, baseline: str) -> tuple[Interval, Interval] | None:
    """The difference at the largest budget in two parts, which add up to it.

    Shift is the difference of the means: every completion is better. Widening is the rest: the best
    of N gained more than the mean. None without the budget 1.
    """
    if 1 not in self.budgets:
      return None
    values, others = self._paired(name, baseline)
    parts = []
    for array in (values, others):
      mean = array[..., self.budgets.index(1)]
      parts.append(np.stack([mean, array[..., -1] - mean], axis=-1))
    found = pooled_bootstrap(*parts)
    return found[0], found[1]

  def seed_differences(self, name: str, baseline: str) -> Float[np.ndarray, "S K"]:
    """Mean difference of each seed's pair of runs."""
    values, others = self._paired(name, baseline)
    return (values - others).mean(axis=1)

  def difference_over_seeds(self, name: str, baseline: str) -> Interval:
    """`difference` with its interval over training runs; see `seed_interval`."""
    return seed_interval(self.seed_differences(name, baseline))

  def rates(self, name: str, baseline: str, *, tolerance: float = 1e-6) -> list[WinTieLoss]:
    """Win / tie / loss over all pairs of a prompt and a seed, at each budget."""
    values, others = self._paired(name, baseline)
    return [
      win_tie_loss(values[..., k].ravel(), others[..., k].ravel(), tolerance=tolerance)
      for k in range(len(self.budgets))
    ]

  def _paired(self, name: str, baseline: str) -> tuple[np.ndarray, np.ndarray]:
    values, others = self.values[name], self.values[baseline]
    if len(values) != len(others) and 1 not in (len(values), len(others)):
      raise ValueError(
        f"'{name}' has {len(values)} seeds and '{baseline}' {len(others)}; "
        "compare methods with the same seeds"
      )
    seeds = max(len(values), len(others))
    shape = (seeds, *values.shape[1:])
    return np.broadcast_to(values, shape), np.broadcast_to(others, shape)


def compare_runs(
  runs: Runs, *, budgets: Sequence[int] | None = None, method: Method = "exact"
) -> Comparison:
  """Best-of-N values of every method on their common prompts.

  Args:
    runs: method -> records of its seeds.
    budgets: by default the powers of two up to n.
    method: `"exact"`, or `"grouped"` as in the papers.

  Raises:
    ValueError: the records are of different prompts, numbers of completions, or rewards.
  """
  if not runs or not all(runs.values()):
    raise ValueError("a comparison needs at least one method with at least one evaluation")
  first = next(iter(runs.values()))[0]
  for name, group in runs.items():
    for records in group:
      _check_comparable(name, records, first)
  if budgets is None:
    budgets = default_budgets(first.num_samples, method)
  values = {
    name: np.stack(
      [best_of_n_frontier(r.rewards, budgets, method=method).per_prompt for r in group]
    )
    for name, group in runs.items()
  }
  lengths = {name: float(np.mean([r.mean_length for r in group])) for name, group in runs.items()}
  return Comparison(list(budgets), values, lengths, first.prompts, first.num_samples, method)


def leave_out_unscored(runs: Runs) -> tuple[Runs, int]:
  """The runs on the prompts whose completions were all scored in all runs, and how many were not.

  Raises:
    ValueError: the records do not belong together, or no prompt is left.
  """
  first = next(iter(runs.values()))[0]
  kept = np.ones(len(first.prompts), bool)
  for name, group in runs.items():
    for records in group:
      _check_comparable(name, records, first)
      kept &= ~np.isnan(records.rewards).any(axis=1)
  if kept.all():
    return runs, 0
  if not kept.any():
    raise ValueError("no prompt has a reward for all of its completions; score them all with 0")
  chosen = {name: [records.select(kept) for records in group] for name, group in runs.items()}
  return chosen, int((~kept).sum())


def _check_comparable(name: str, records: Records, first: Records) -> None:
  if records.prompts != first.prompts:
    raise ValueError(
      f"the records of '{name}' are of other prompts than the first method's; a paired comparison "
      "needs the same prompts in the same order"
    )
  if records.num_samples != first.num_samples:
    raise ValueError(
      f"'{name}' has {records.num_samples} completions of a prompt, the first method "
      f"{first.num_samples}; evaluate both with the same number"
    )
  if records.spec.get("reward") != first.spec.get("reward"):
    raise ValueError(
      f"'{name}' was scored by '{records.spec.get('reward')}', the first method by "
      f"'{first.spec.get('reward')}'; compare under one reward"
    )
