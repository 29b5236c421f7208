"""Pass@N: one of N samples suffices, S(p) = 1 - (1 - p)^N."""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
from jaxtyping import Array

from tea_jax.strategies.strategy import Strategy, log_complement, times_log


def pass_at_n(budget: int) -> Strategy:
  """Pass@N: S = 1 - (1 - p)^N, S' = N (1 - p)^(N-1), p S' / S from 1 at p = 0 to 0 at p = 1.

  Args:
    budget: N; 1 is cross-entropy.

  Raises:
    ValueError: if the budget is not a positive integer.

  Source: arXiv 2604.24957, Table 1, eq. 92.
  """
  return _PassAtN(budget)


@dataclasses.dataclass(frozen=True)
class _PassAtN(Strategy):
  def _log_success(self, log_probability: Array, log_failure: Array) -> Array:
    tiny = self._tiny(log_probability)
    log_success = log_complement(self.budget * jnp.where(tiny, -1.0, log_failure))
    return jnp.where(tiny, math.log(self.budget) + log_probability, log_success)

  def _log_weight(self, log_probability: Array, log_failure: Array) -> Array:
    del log_probability
    return math.log(self.budget) + times_log(self.budget - 1, log_failure)

  def _log_supervised_weight(self, log_probability: Array, log_failure: Array) -> Array:
    tiny = self._tiny(log_probability)
    log_success = log_complement(self.budget * jnp.where(tiny, -1.0, log_failure))
    share = jnp.where(tiny, -math.log(self.budget), log_probability - log_success)
    return self._log_weight(log_probability, log_failure) + share

  def _tiny(self, log_probability: Array) -> Array:
    """Where S = N p to the last digit: the logarithm of its tiny complement is not needed."""
    return log_probability < math.log(float(jnp.finfo(log_probability.dtype).eps) / self.budget)
