"""tea_jax: post-training language models for how they are deployed.

Rewards of a group of rollouts go in, advantages come out; everything else exists to make the
rewards and to use the advantages.

Two things are called tail_influence: `tea_jax.tail_influence(...)` makes the advantage rule,
`tea_jax.tail.tail_influence(rewards, tail, ...)` is the function of arrays that it is built on.
"""

from typing import TYPE_CHECKING, Any

# The mathematics of upper tails.
from tea_jax.tail import (
  TailConstants,
  TailVector,
  best_of_n_value,
  cancellation_weights,
  compatible_prefixes,
  cross_fitted_gradient,
  direct_gradient,
  expected_maximum,
  invert_tail,
  maximum_influence,
  minimum_budget,
  prefix_gradient,
  shaped_reward,
  subset_averaged_gradient,
  tail_constants,
  tail_count,
  tail_vector,
)

# What a test-time strategy makes of a success probability.
from tea_jax.strategies import (  # isort: skip
  alignment_coefficient,
  best_of_n,
  crossover_budget,
  majority,
  pass_at_n,
)

# Predictions of best-of-N and pass@N from a few rollouts, and search guided by them.
from tea_jax.scaling import (  # isort: skip
  predict_best_of_n,
  predict_pass_at_n,
  scaling_law_search,
)

# Advantage rules, and the registry that makes them by name.
from tea_jax import advantages as _advantages  # isort: skip
from tea_jax.advantages import *  # noqa: F403  # isort: skip

if TYPE_CHECKING:
  from tea_jax.models.lora import LoraConfig, init_adapters, merge_adapters
  from tea_jax.models.policy import Policy
  from tea_jax.models.sharding import make_mesh
  from tea_jax.models.weights.load import load_policy, load_sequence_classifier
  from tea_jax.models.weights.peft import load_adapters, save_adapters
  from tea_jax.rollout.engine import RolloutEngine
  from tea_jax.rollout.sampling import SamplingConfig
  from tea_jax.runs.config import RunConfig
  from tea_jax.training.loop import train

__version__ = "0.2.0"

# Models and training take seconds to import, so they are imported when they are first named.
_LAZY = {
  "LoraConfig": "tea_jax.models.lora",
  "Policy": "tea_jax.models.policy",
  "RolloutEngine": "tea_jax.rollout.engine",
  "RunConfig": "tea_jax.runs.config",
  "SamplingConfig": "tea_jax.rollout.sampling",
  "init_adapters": "tea_jax.models.lora",
  "load_adapters": "tea_jax.models.weights.peft",
  "load_policy": "tea_jax.models.weights.load",
  "load_sequence_classifier": "tea_jax.models.weights.load",
  "make_mesh": "tea_jax.models.sharding",
  "merge_adapters": "tea_jax.models.lora",
  "save_adapters": "tea_jax.models.weights.peft",
  "train": "tea_jax.training.loop",
}

__all__ = [
  "LoraConfig",
  "Policy",
  "RolloutEngine",
  "RunConfig",
  "SamplingConfig",
  "TailConstants",
  "TailVector",
  "alignment_coefficient",
  "best_of_n",
  "best_of_n_value",
  "cancellation_weights",
  "compatible_prefixes",
  "cross_fitted_gradient",
  "crossover_budget",
  "direct_gradient",
  "expected_maximum",
  "init_adapters",
  "invert_tail",
  "load_adapters",
  "load_policy",
  "load_sequence_classifier",
  "majority",
  "make_mesh",
  "maximum_influence",
  "merge_adapters",
  "minimum_budget",
  "pass_at_n",
  "predict_best_of_n",
  "predict_pass_at_n",
  "prefix_gradient",
  "save_adapters",
  "scaling_law_search",
  "shaped_reward",
  "subset_averaged_gradient",
  "tail_constants",
  "tail_count",
  "tail_vector",
  "train",
]
__all__ += _advantages.__all__


def __getattr__(name: str) -> Any:
  if name not in _LAZY:
    raise AttributeError(f"module 'tea_jax' has no attribute {name!r}")
  import importlib

  value = getattr(importlib.import_module(_LAZY[name]), name)
  globals()[name] = value
  return value


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
