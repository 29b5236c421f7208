"""Evaluation: best-of-N with uncertainty, from stored completions to a report."""

from tea_jax.evaluation.best_of_n import (
  Frontier,
  best_of_n_exact,
  best_of_n_frontier,
  best_of_n_grouped,
  top_mean,
)
from tea_jax.evaluation.bootstrap import (
  Interval,
  WinTieLoss,
  paired_bootstrap,
  pooled_bootstrap,
  prompt_bootstrap,
  win_tie_loss,
)
from tea_jax.evaluation.pass_at_k import majority_at_k, pass_at_k
from tea_jax.evaluation.qq_linearity import QQLinearity, gaussian_reference, qq_linearity

# Figures, records and reports need optional packages or the heavier rooms: import their modules.
__all__ = [
  "Frontier",
  "Interval",
  "QQLinearity",
  "WinTieLoss",
  "best_of_n_exact",
  "best_of_n_frontier",
  "best_of_n_grouped",
  "gaussian_reference",
  "majority_at_k",
  "paired_bootstrap",
  "pass_at_k",
  "pooled_bootstrap",
  "prompt_bootstrap",
  "qq_linearity",
  "top_mean",
  "win_tie_loss",
]
