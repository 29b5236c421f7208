"""Which rule is best at the same KL: every rule, trained to equilibrium in small exact worlds."""

from tea_jax.studies.kl_frontier.equilibrium import EquilibriumConfig, base_signal, make_trainer
from tea_jax.studies.kl_frontier.frontier import (
  Curve,
  FrontierConfig,
  WorldResult,
  ceiling,
  default_rules,
  run_frontier,
)
from tea_jax.studies.kl_frontier.worlds import WORLDS, GaussianWorld, SoftmaxWorld, make_world

__all__ = [
  "WORLDS",
  "Curve",
  "EquilibriumConfig",
  "FrontierConfig",
  "GaussianWorld",
  "SoftmaxWorld",
  "WorldResult",
  "base_signal",
  "ceiling",
  "default_rules",
  "make_trainer",
  "make_world",
  "run_frontier",
]
