"""pass@k and maj@k, for tasks whose answers can be checked."""

from __future__ import annotations

import collections
from collections.abc import Hashable, Sequence

import numpy as np
from jaxtyping import Bool, Float


def pass_at_k(correct: Bool[np.ndarray, "P n"], k: int) -> Float[np.ndarray, "P"]:
  """Probability that k of the n completions, drawn without replacement, hold a correct one.

    1 - C(n - c, k) / C(n, k) = 1 - prod_{i<k} (1 - c / (n - i)),   c correct of n

  Args:
    correct: `[P, n]` booleans.
    k: in 1 ... n.

  Returns:
    `[P]` in [0, 1]; average it over prompts.
  """
  correct = _checked(correct, k)
  num_samples = correct.shape[1]
  count = correct.sum(axis=1, dtype=np.float64)[:, None]
  remaining = num_samples - np.arange(k, dtype=np.float64)
  with np.errstate(divide="ignore"):
    log_none = np.log1p(-np.minimum(count / remaining, 1.0)).sum(axis=1)
  return -np.expm1(log_none)


def majority_at_k(
  answers: Sequence[Sequence[Hashable | None]],
  correct: Bool[np.ndarray, "P n"],
  k: int,
  *,
  num_draws: int = 500,
  seed: int = 0,
) -> Float[np.ndarray, "P"]:
  """Probability that the most frequent answer of k completions is correct.

  Estimated from `num_draws` draws without replacement (k = 1: exactly c / n). The winner of a draw
  is the most frequent valid answer, ties going to the one drawn first; answers are equal when their
  strings are. Completions without an answer (None) stay in the pool and cannot win; a draw without
  any answer fails.

  Args:
    answers: P lists of n answers, None where there is none.
    correct: `[P, n]` whether each answer is right.
    k: in 1 ... n.
    num_draws: draws a prompt.
    seed: of the draws; the same prompt index gets the same draws for every policy.

  Returns:
    `[P]` in [0, 1].

  Source: arXiv 2604.24957, metrics.
  """
  correct = _checked(correct, k)
  if [len(row) for row in answers] != [correct.shape[1]] * correct.shape[0]:
    raise ValueError(
      f"answers must be {correct.shape[0]} lists of {correct.shape[1]}, as `correct` is"
    )
  if num_draws < 1:
    raise ValueError(f"num_draws={num_draws} must be at least 1")
  if k == 1:
    return correct.mean(axis=1)
  shares = np.empty((correct.shape[0],), np.float64)
  for prompt, row in enumerate(answers):
    rng = np.random.default_rng([seed, prompt])
    wins = 0
    for _ in range(num_draws):
      winner = majority(row, rng.permutation(correct.shape[1])[:k])
      wins += winner is not None and bool(correct[prompt, winner])
    shares[prompt] = wins / num_draws
  return shares


def majority(answers: Sequence[Hashable | None], draw: Sequence[int] | np.ndarray) -> int | None:
  """Index of the first completion in `draw` that gave the most frequent valid answer, or None."""
  votes = collections.Counter(answers[i] for i in draw if answers[i] is not None)
  if not votes:
    return None
  winner = votes.most_common(1)[0][0]  # counters keep the order of first occurrence in ties
  return next(int(i) for i in draw if answers[i] == winner)


def _checked(correct: Bool[np.ndarray, "P n"], k: int) -> Bool[np.ndarray, "P n"]:
  values = np.asarray(correct)
  if values.ndim != 2 or values.dtype != np.bool_:
    raise ValueError(
      f"correct must be booleans of the shape [prompts, completions], "
      f"got {values.dtype} {values.shape}"
    )
  if not 1 <= k <= values.shape[1]:
    raise ValueError(f"k={k} must lie between 1 and the {values.shape[1]} completions of a prompt")
  return values
