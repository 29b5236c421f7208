"""What identifies an evaluation, so that stored completions are never taken for others."""

from __future__ import annotations

from typing import Any

from tea_jax.models.digest import parameters_digest
from tea_jax.runs.config import to_dict
from tea_jax.runs.groups import DataConfig, PolicyConfig, RolloutConfig


def evaluation_spec(
  params: Any, *, model: PolicyConfig, data: DataConfig, sampling: RolloutConfig, seed: int
) -> dict[str, Any]:
  """Everything beside prompts and reward on which the completions of a policy depend.

  Args:
    params: the weights that are sampled from.
    model: of which the compute dtype counts; the weights speak for the rest.
    data: of which the way from a prompt to its tokens counts.
    sampling: all of it but its memory and compactions; the group size decides the random keys.
    seed: of the evaluation.

  Returns:
    JSON for `evaluate_policy` or `sample_pools`.
  """
  template = {name: getattr(data, name) for name in ("chat", "system_prompt", "max_prompt_length")}
  return {
    "weights": parameters_digest(params),
    "compute_dtype": model.compute_dtype,
    "template": template,
    "sampling": {k: v for k, v in sampling_spec(sampling).items() if k != "memory_gb"},
    "seed": seed,
  }


def sampling_spec(sampling: RolloutConfig) -> dict[str, Any]:
  """Sampling without what only decides how tokens are computed, not which law they follow."""
  calls = ("compactions", "cache_buckets", "decode_attention")
  return {k: v for k, v in to_dict(sampling).items() if k not in calls}
