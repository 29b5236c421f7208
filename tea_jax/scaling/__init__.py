"""How good the best of N would be, predicted from a few rollouts, and how to spend N better."""

from tea_jax.scaling.base import RolloutSource, Schedule, SearchResult, search_schedule
from tea_jax.scaling.laws import best_of_n_interval, predict_best_of_n
from tea_jax.scaling.search import (
  best_of_n,
  branching_best_of_n,
  mean_guided_search,
  scaling_law_search,
  ucb_search,
)
from tea_jax.scaling.shared_shape import predict_with_shared_shape
from tea_jax.scaling.success_rates import BetaLaw, fit_success_rates, predict_pass_at_n
from tea_jax.scaling.tail_fits import (
  GaussianTail,
  ParetoTail,
  fit_gaussian_tail,
  fit_pareto_tail,
)
from tea_jax.scaling.two_level import TwoLevelGaussian

__all__ = [
  "BetaLaw",
  "GaussianTail",
  "ParetoTail",
  "RolloutSource",
  "Schedule",
  "SearchResult",
  "TwoLevelGaussian",
  "best_of_n",
  "best_of_n_interval",
  "branching_best_of_n",
  "fit_gaussian_tail",
  "fit_pareto_tail",
  "fit_success_rates",
  "mean_guided_search",
  "predict_best_of_n",
  "predict_pass_at_n",
  "predict_with_shared_shape",
  "scaling_law_search",
  "search_schedule",
  "ucb_search",
]
