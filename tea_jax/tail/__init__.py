"""The mathematics of upper tails: arrays in, arrays out; knows no model."""

from tea_jax.tail.gaussian import (
  TailConstants,
  expected_maximum,
  minimum_budget,
  tail_constants,
)
from tea_jax.tail.gradients import (
  cross_fitted_gradient,
  direct_gradient,
  prefix_gradient,
  subset_averaged_gradient,
)
from tea_jax.tail.prefixes import cancellation_weights, compatible_prefixes
from tea_jax.tail.shaping import (
  best_of_n_value,
  maximum_influence,
  shaped_reward,
  tail_influence,
)
from tea_jax.tail.statistics import TailVector, invert_tail, tail_count, tail_vector

__all__ = [
  "TailConstants",
  "TailVector",
  "best_of_n_value",
  "cancellation_weights",
  "compatible_prefixes",
  "cross_fitted_gradient",
  "direct_gradient",
  "expected_maximum",
  "invert_tail",
  "maximum_influence",
  "minimum_budget",
  "prefix_gradient",
  "shaped_reward",
  "subset_averaged_gradient",
  "tail_constants",
  "tail_count",
  "tail_influence",
  "tail_vector",
]
