"""Best-of-N: the best of N samples is kept, S = (P<=)^N - (P<)^N for a sample of some reward."""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
from jaxtyping import Array

from tea_jax.strategies.strategy import Strategy, log_complement, times_log


def best_of_n(budget: int) -> Strategy:
  """Best-of-N: S = (P<=)^N - (P<)^N, S' = N (P<)^(N-1).

  Here p = P<= - P< is the probability of a sample's own reward, and `log_failure` is log P<, that
  of a worse one. S' holds P<= fixed: probability comes from worse answers. Without `log_failure`
  nothing is better than the sample, P< = 1 - p, and this is Pass@N.

  Args:
    budget: N.

  Raises:
    ValueError: if the budget is not a positive integer.

  Example:
    >>> log_own, log_below = jnp.log(0.01), jnp.log(0.98)
    >>> print(f"{best_of_n(64).weight(log_own, log_below):.3f}")  # 64 * 0.98^63
    17.924

  Source: arXiv 2604.24957, Table 1, eq. 58, section B.3.
  """
  return _BestOfN(budget)


@dataclasses.dataclass(frozen=True)
class _BestOfN(Strategy):
  def _log_success(self, log_probability: Array, log_failure: Array) -> Array:
    # With x = p / P<, S = (P<)^N ((1 + x)^N - 1) = (P<=)^N (1 - (1 + x)^-N).
    log_growth = self._log_growth(log_probability, log_failure)
    log_largest = jnp.where(jnp.isneginf(log_failure), log_probability, log_failure + log_growth)
    tiny = self._tiny(log_probability, log_failure)
    first = math.log(self.budget) + log_probability + times_log(self.budget - 1, log_failure)
    rest = self.budget * log_largest + log_complement(
      -self.budget * jnp.where(tiny, 1.0, log_growth)
    )
    return jnp.where(tiny, first, rest)

  def _log_weight(self, log_probability: Array, log_failure: Array) -> Array:
    del log_probability
    return math.log(self.budget) + times_log(self.budget - 1, log_failure)

  def _log_supervised_weight(self, log_probability: Array, log_failure: Array) -> Array:
    if self.budget == 1:
      return jnp.zeros(jnp.broadcast_shapes(log_probability.shape, log_failure.shape))
    # N x / ((1 + x)^N - 1) = N x (1 + x)^-N / (1 - (1 + x)^-N): no large logarithms cancel.
    tiny = self._tiny(log_probability, log_failure)
    growth = jnp.where(tiny, 1.0, self._log_growth(log_probability, log_failure))
    log_x = log_probability - jnp.where(tiny, 0.0, log_failure)
    weight = math.log(self.budget) + log_x - self.budget * growth
    weight = jnp.where(jnp.isneginf(log_failure), -jnp.inf, weight)
    return jnp.where(tiny, 0.0, weight - log_complement(-self.budget * growth))

  def _log_growth(self, log_probability: Array, log_failure: Array) -> Array:
    """log(1 + p / P<) = log P<= - log P<."""
    return jnp.logaddexp(0.0, log_probability - log_failure)

  def _tiny(self, log_probability: Array, log_failure: Array) -> Array:
    """Where S = N p (P<)^(N-1) to the last digit."""
    eps = float(jnp.finfo(log_probability.dtype).eps)
    below = jnp.where(jnp.isneginf(log_failure), -1e30, log_failure)
    return log_probability - below < math.log(eps / self.budget)
