"""pass@k and maj@k, for tasks whose answers can be checked."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int


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
  budgets: Sequence[int],
  *,
  num_draws: int = 500,
  seed: int = 0,
) -> Float[np.ndarray, "P K"]:
  """Probability that the most frequent answer of k completions is correct, for each k.

  Estimated from `num_draws` draws without replacement (k = 1: exactly c / n). The winner of a draw
  is the most frequent valid answer, ties going to the one drawn first; answers are equal when their
  strings are. Completions without an answer (None) stay in the pool and cannot win; a draw without
  any answer fails.

  Args:
    answers: P lists of n answers, None where there is none.
    correct: `[P, n]` whether each answer is right.
    budgets: K values of k in 1 ... n.
    num_draws: draws a prompt; those of a larger k hold those of a smaller.
    seed: of the draws; the same prompt index gets the same draws for every policy.

  Returns:
    `[P, K]` in [0, 1].

  Raises:
    ValueError: if a k is out of range, or shapes differ.

  Source: arXiv 2604.24957, metrics.
  """
  for k in budgets:
    correct = _checked(correct, k)
  num_samples = correct.shape[1]
  if [len(row) for row in answers] != [num_samples] * len(correct):
    raise ValueError(f"answers must be {correct.shape[0]} lists of {num_samples}, as `correct` is")
  if num_draws < 1:
    raise ValueError(f"num_draws={num_draws} must be at least 1")
  shares = np.empty((len(correct), len(budgets)), np.float64)
  for prompt, row in enumerate(answers):
    rng = np.random.default_rng([seed, prompt])
    draws = np.stack([rng.permutation(num_samples) for _ in range(num_draws)])
    winners = majority_winners(row, draws[:, : max(budgets)], budgets)
    shares[prompt] = np.mean((winners >= 0) & correct[prompt, winners], axis=0)
    shares[prompt, np.equal(budgets, 1)] = correct[prompt].mean()
  return shares


def majority_winners(
  answers: Sequence[Hashable | None], draws: Int[np.ndarray, "D k"], budgets: Sequence[int]
) -> Int[np.ndarray, "D K"]:
  """`[D, K]`: who wins among the first k completions of each draw.

  The winner is the first completion drawn that gave the most frequent valid answer, among equally
  frequent ones the answer drawn first; -1 if no answer is valid.

  Args:
    answers: of each completion, None where there is none.
    draws: `[D, k]` indices of completions.
    budgets: K values of k, at most the columns of `draws`.

  Example:
    >>> majority_winners(["4", "5", None, "4"], np.array([[2, 1, 0, 3]]), (1, 3, 4)).tolist()
    [[-1, 1, 0]]
  """
  winners = np.full((len(draws), len(budgets)), -1, np.int64)
  valid = sorted({str(answer) for answer in answers if answer is not None})
  if not valid:
    return winners
  number = {answer: i for i, answer in enumerate(valid)}
  # Completions without an answer vote in a last column, which is not looked at.
  ids = np.array([len(valid) if answer is None else number[str(answer)] for answer in answers])
  rows, width = np.arange(len(draws)), draws.shape[1]
  votes = np.zeros((len(draws), len(valid) + 1), np.int64)
  first = np.full(votes.shape, width, np.int64)
  for j in range(width):
    voted = ids[draws[:, j]]
    votes[rows, voted] += 1
    first[rows, voted] = np.minimum(first[rows, voted], j)
    for column in np.flatnonzero(np.equal(budgets, j + 1)):
      # More votes win; of equally many, the answer that came first.
      best = np.argmax(votes[:, :-1] * (width + 1) - first[:, :-1], axis=1)
      some = votes[rows, best] > 0
      winners[some, column] = draws[rows[some], first[rows[some], best[some]]]
  return winners


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
