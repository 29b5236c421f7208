"""How good the best of N would be, predicted from a few rollouts."""

from tea_jax.scaling.laws import best_of_n_interval, predict_best_of_n
from tea_jax.scaling.success_rates import BetaLaw, fit_success_rates, predict_pass_at_n
from tea_jax.scaling.tail_fits import (
  GaussianTail,
  ParetoTail,
  fit_gaussian_tail,
  fit_pareto_tail,
)

__all__ = [
  "BetaLaw",
  "GaussianTail",
  "ParetoTail",
  "best_of_n_interval",
  "fit_gaussian_tail",
  "fit_pareto_tail",
  "fit_success_rates",
  "predict_best_of_n",
  "predict_pass_at_n",
]
