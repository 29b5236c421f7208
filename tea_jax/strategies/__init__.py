"""Test-time strategies: what pass@N, majority votes and best-of-N make of one sample's success."""

from tea_jax.strategies.alignment import (
  alignment_coefficient,
  crossover_budget,
  diagonal_efficiency,
  plurality_partials,
  plurality_success,
)
from tea_jax.strategies.best_of_n import best_of_n
from tea_jax.strategies.majority import majority, majority_threshold
from tea_jax.strategies.pass_at_n import pass_at_n
from tea_jax.strategies.strategy import Strategy

__all__ = [
  "Strategy",
  "alignment_coefficient",
  "best_of_n",
  "crossover_budget",
  "diagonal_efficiency",
  "majority",
  "majority_threshold",
  "pass_at_n",
  "plurality_partials",
  "plurality_success",
]
