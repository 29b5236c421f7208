"""Best-of-N from stored rewards: the papers' grouped maxima and the exact estimator for every N.

All functions are numpy, float64, and take rewards `[num_prompts, num_samples]`: P prompts with n
completions each. Sampling with replacement inside a prompt is not offered: it is biased low (best
of 64 of 64 normal rewards: 2.17 instead of 2.35), by as much as methods differ.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Real

from tea_jax.tail.order_statistics import subset_maximum_weights

Method = Literal["grouped", "exact"]


def best_of_n_grouped(rewards: Real[ArrayLike, "P n"], budget: int) -> Float[np.ndarray, "P"]:
  """Mean over the n / N consecutive groups of N rewards of the group's maximum.

  Args:
    rewards: `[P, n]`, finite.
    budget: N, a divisor of n.

  Returns:
    `[P]` value of each prompt.

  Raises:
    ValueError: N does not divide n, or a reward is not finite (named by prompt and rollout).

  Source: arXiv 2605.10716, B.2.
  """
  rewards = checked_rewards(rewards)
  num_prompts, num_samples = rewards.shape
  if budget < 1 or num_samples % budget:
    raise ValueError(
      f"budget={budget} does not divide the {num_samples} completions of a prompt; use a divisor, "
      "or the exact estimator, which takes any budget up to it"
    )
  groups = rewards.reshape(num_prompts, num_samples // budget, budget)
  return groups.max(axis=-1).mean(axis=-1)


def best_of_n_exact(
  rewards: Real[ArrayLike, "P n"], budgets: Sequence[int] | None = None
) -> Float[np.ndarray, "P num_budgets"]:
  """Mean of the maximum over all C(n, N) subsets of N completions: unbiased, of least variance.

    sum_{i=N}^{n} C(i-1, N-1) / C(n, N) r_(i),   r_(1) <= ... <= r_(n)

  Args:
    rewards: `[P, n]`, finite.
    budgets: values of N in 1 ... n; None for all of them.

  Returns:
    `[P, len(budgets)]`.

  Source: order statistics of sampling without replacement; compare max@k, arXiv 2510.23393.
  """
  rewards = checked_rewards(rewards)
  num_samples = rewards.shape[1]
  budgets = range(1, num_samples + 1) if budgets is None else budgets
  weights = np.stack([subset_maximum_weights(num_samples, budget) for budget in budgets], axis=1)
  return np.sort(rewards, axis=1) @ weights


@dataclasses.dataclass(frozen=True)
class Frontier:
  """Best-of-N values over budgets.

  Attributes:
    budgets: `[num_budgets]` ints.
    per_prompt: `[P, num_budgets]`.
    method: how they were estimated.
  """

  budgets: np.ndarray
  per_prompt: Float[np.ndarray, "P num_budgets"]
  method: Method

  @property
  def mean(self) -> Float[np.ndarray, "num_budgets"]:
    """Average over prompts: what tables report as bo1 ... boN."""
    return self.per_prompt.mean(axis=0)

  def at(self, budget: int) -> Float[np.ndarray, "P"]:
    """The prompts' values at one budget."""
    return self.per_prompt[:, self.index(budget)]

  def index(self, budget: int) -> int:
    """Column of a budget."""
    (found,) = np.nonzero(self.budgets == budget)
    if not found.size:
      raise ValueError(f"budget {budget} is not on the frontier, which has {self.budgets.tolist()}")
    return int(found[0])


def best_of_n_frontier(
  rewards: Real[ArrayLike, "P n"],
  budgets: Sequence[int] | None = None,
  *,
  method: Method = "grouped",
) -> Frontier:
  """The frontier bo1 ... boN.

  Args:
    rewards: `[P, n]`, finite.
    budgets: by default the powers of two up to n (grouped: those that divide n).
    method: `"grouped"` as in the papers, or `"exact"`.
  """
  rewards = checked_rewards(rewards)
  if budgets is None:
    budgets = default_budgets(rewards.shape[1], method)
  if method == "exact":
    per_prompt = best_of_n_exact(rewards, budgets)
  elif method == "grouped":
    per_prompt = np.stack([best_of_n_grouped(rewards, budget) for budget in budgets], axis=1)
  else:
    raise ValueError(f"method={method!r} must be 'grouped' or 'exact'")
  return Frontier(np.asarray(budgets, np.int64), per_prompt, method)


def default_budgets(num_samples: int, method: Method = "grouped") -> list[int]:
  """Powers of two up to n; for grouped maxima those that divide n."""
  powers = [2**power for power in range(num_samples.bit_length())]
  return [b for b in powers if method == "exact" or num_samples % b == 0]


def top_mean(rewards: Real[ArrayLike, "P n"], top: int = 10) -> float:
  """Mean over prompts of the mean of a prompt's `top` largest rewards: the validation score.

  The papers select checkpoints by the top 10 of 32 completions of 128 validation prompts.

  Args:
    rewards: `[P, n]`; NaN where not scored: fewer than `top` then count, of such a prompt.
    top: in 1 ... n.

  Raises:
    ValueError: if `top` is out of range, or no completion at all was scored.

  Source: arXiv 2605.10716, B.2.
  """
  rewards = np.asarray(rewards, np.float64)
  if not 1 <= top <= rewards.shape[1]:
    raise ValueError(f"top={top} must lie between 1 and the {rewards.shape[1]} completions")
  scored = [np.sort(row[~np.isnan(row)])[::-1] for row in rewards]
  means = [row[:top].mean() for row in scored if row.size]
  if not means:
    raise ValueError("no completion was scored; a validation score needs a reward for them.")
  return float(np.mean(means))


def checked_rewards(rewards: Real[ArrayLike, "P n"]) -> Float[np.ndarray, "P n"]:
  """Float64 rewards `[P, n]`.

  Raises:
    ValueError: another shape, nothing there, or a value that is not finite.
  """
  values = np.asarray(rewards, np.float64)
  if values.ndim != 2 or values.size == 0:
    raise ValueError(f"rewards must have the shape [prompts, completions], got {values.shape}")
  bad = np.argwhere(~np.isfinite(values))
  if bad.size:
    prompt, rollout = bad[0]
    raise ValueError(
      f"the reward of prompt {prompt}, rollout {rollout} is {values[prompt, rollout]} "
      f"({len(bad)} of {values.size} are not finite); score it or leave its prompt out"
    )
  return values
