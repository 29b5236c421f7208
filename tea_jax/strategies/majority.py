"""Majority vote: k of N votes win, S(p) = sum_{i >= k} C(N, i) p^i (1 - p)^(N - i)."""

from __future__ import annotations

import dataclasses
import fractions
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from tea_jax.strategies.strategy import Strategy, log_complement, times_log
from tea_jax.tail.order_statistics import log_binomial


def majority(budget: int, threshold: int | Int[Array, "*batch"]) -> Strategy:
  """Majority vote with N votes of which k win.

  S' = N C(N-1, k-1) p^(k-1) (1-p)^(N-k); p S' / S = k C(N, k) p^k (1-p)^(N-k) / S, from k at p = 0
  to 0 at p = 1 (N everywhere for k = N). k = 1 is Pass@N.

  Args:
    budget: N, the number of votes.
    threshold: k, votes that win, in 1 ... N; an array, which broadcasts against log p and is
      clipped to that range, for one threshold a prompt.

  Raises:
    ValueError: if the budget is not a positive integer, or the threshold not in 1 ... N.

  Source: arXiv 2604.24957, Table 1, eqs. 7, 16, 94.
  """
  if isinstance(threshold, (int, float)) and not (
    threshold == int(threshold) and 1 <= threshold <= budget
  ):
    raise ValueError(
      f"threshold={threshold} must be a number of votes between 1 and budget={budget}"
    )
  return _Majority(budget, threshold)


def majority_threshold(budget: int, fraction: float) -> int:
  """ceil(fraction * budget): votes of `budget` that win where a share of them does.

  Raises:
    ValueError: if the fraction is not in (0, 1].
  """
  if not 0 < fraction <= 1:
    raise ValueError(f"fraction={fraction} must be above 0 and at most 1")
  # In decimals: 0.07 * 100 is above 7 in binary.
  return math.ceil(fractions.Fraction(str(fraction)) * budget)


@dataclasses.dataclass(frozen=True, eq=False)
class _Majority(Strategy):
  threshold: int | Array

  def _log_success(self, log_probability: Array, log_failure: Array) -> Array:
    votes, k, log_choose = self._votes(log_probability.dtype)
    terms = (
      log_choose
      + times_log(votes, log_probability[..., None])
      + times_log(self.budget - votes, log_failure[..., None])
    )
    lower = jax.nn.logsumexp(jnp.where(votes < k[..., None], terms, -jnp.inf), axis=-1)
    choose, log_ratio = self._ratio(log_probability, log_failure)
    upper = (
      choose
      + times_log(k, log_probability)
      + times_log(self.budget - k, log_failure)
      + jnp.where(jnp.isinf(log_ratio), 0, log_ratio)
    )
    # Above k / (N + 1) the lower tail is the smaller one: 1 - S keeps its digits.
    likely = log_probability >= jnp.log(k / (self.budget + 1))
    return jnp.where(likely, log_complement(jnp.where(likely, lower, -1.0)), upper)

  def _log_weight(self, log_probability: Array, log_failure: Array) -> Array:
    votes, k, _ = self._votes(log_probability.dtype)
    # N C(N-1, k-1) = k C(N, k)
    choose = log_binomial(self.budget, votes) + np.log(np.maximum(votes, 1))
    return (
      jnp.asarray(choose, log_probability.dtype)[k]
      + times_log(k - 1, log_probability)
      + times_log(self.budget - k, log_failure)
    )

  def _log_supervised_weight(self, log_probability: Array, log_failure: Array) -> Array:
    _, k, _ = self._votes(log_probability.dtype)
    return jnp.log(k.astype(log_probability.dtype)) - self._ratio(log_probability, log_failure)[1]

  def _ratio(self, log_probability: Array, log_failure: Array) -> tuple[Array, Array]:
    """(log C(N, k), log of S over its first term).

    p^k (1-p)^(N-k) is taken out of S: what remains is a sum of powers of the odds, and for p -> 0
    no large logarithms cancel.
    """
    votes, k, log_choose = self._votes(log_probability.dtype)
    beyond = votes - k[..., None]
    log_odds = (log_probability - log_failure)[..., None]
    terms = log_choose - log_choose[k][..., None] + times_log(jnp.maximum(beyond, 0), log_odds)
    return log_choose[k], jax.nn.logsumexp(jnp.where(beyond >= 0, terms, -jnp.inf), axis=-1)

  def _votes(self, dtype) -> tuple[np.ndarray, Array, Array]:
    """(0 ... N, k, log C(N, 0 ... N))."""
    votes = np.arange(self.budget + 1)
    k = jnp.clip(jnp.asarray(self.threshold, jnp.int32), 1, self.budget)
    return votes, k, jnp.asarray(log_binomial(self.budget, votes), dtype)
