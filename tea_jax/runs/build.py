"""From the flags to what a run works with: policy, prompts in splits, reward."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from tea_jax.data import (
  RECIPES,
  EncodedPrompts,
  Prompt,
  encode_prompts,
  load_openers,
  load_prompts,
  load_recipe,
  split_by_hash,
)
from tea_jax.models.lora import LoraConfig
from tea_jax.models.policy import Policy
from tea_jax.models.sharding import make_mesh
from tea_jax.models.weights.load import load_policy
from tea_jax.rewards import RewardFunction, WeightedReward, make_reward
from tea_jax.runs.config import RunConfig
from tea_jax.runs.groups import DataConfig, PolicyConfig

Splits = Mapping[str, Sequence[Prompt]]


def load_splits(options: DataConfig) -> dict[str, list[Prompt]]:
  """`train`, `validation`, `test` (and a recipe's other splits), disjoint by content.

  A recipe brings its own sizes (`test_split` says which of them is `test`); other sources are cut
  by hash into `num_test`, `num_validation` and the rest.
  """
  sizes = {"test": options.num_test, "validation": options.num_validation}
  recipe = options.prompts.replace("-", "_")
  if recipe in RECIPES:
    splits = load_recipe(recipe)
    return {**splits, "test": splits[options.test_split]}
  if options.prompts == "openers":
    return load_openers(num_test=options.num_test, num_validation=options.num_validation)
  prompts = load_prompts(options.prompts, prompt_column=options.column)
  return split_by_hash(prompts, sizes)


def encode(prompts: Sequence[Prompt], policy: Policy, options: DataConfig) -> EncodedPrompts:
  """Token ids of prompts under the run's template; over-long ones are dropped and counted."""
  recipe = RECIPES.get(options.prompts.replace("-", "_"))
  system_prompt = options.system_prompt
  if system_prompt is None and recipe is not None:
    system_prompt = recipe.system_prompt
  return encode_prompts(
    prompts,
    policy.tokenizer,
    template="chat" if options.chat else "raw",
    max_prompt_length=options.max_prompt_length,
    system_prompt=system_prompt,
  )


def load_run_policy(config: RunConfig) -> Policy:
  """The policy of a run, on its mesh."""
  return load_policy(
    config.model.name,
    compute_dtype=config.model.compute_dtype,
    remat=config.model.remat,
    scan_layers=config.model.scan_layers,
    attention=config.model.attention,
    mesh=run_mesh(config),
  )


def run_mesh(config: RunConfig) -> jax.sharding.Mesh | None:
  """The mesh of a run; None on a single device."""
  if jax.process_count() > 1:
    raise ValueError(
      f"{jax.process_count()} processes were started; training runs in one process for now, on all "
      "the devices that it sees."
    )
  needed = config.mesh.fsdp * config.mesh.tensor * max(1, config.mesh.data)
  if needed > jax.device_count():
    raise ValueError(
      f"mesh data={config.mesh.data}, fsdp={config.mesh.fsdp}, tensor={config.mesh.tensor} needs "
      f"{needed} devices, but there are {jax.device_count()}."
    )
  if jax.device_count() == 1:
    return None
  return make_mesh(data=config.mesh.data, fsdp=config.mesh.fsdp, tensor=config.mesh.tensor)


def make_run_reward(config: RunConfig) -> RewardFunction:
  """The weighted sum of the run's reward functions."""
  options: dict[str, Any] = json.loads(config.reward.options)
  names = config.reward.functions
  weights = config.reward.weights or (1.0,) * len(names)
  reward = WeightedReward(
    {
      name: (_make_reward(name, options.get(name, {})), weight)
      for name, weight in zip(names, weights)
    }
  )
  if options:
    # Records tell rewards apart by name.
    reward.name += f" {json.dumps(options, sort_keys=True)}"
  return reward


def _make_reward(name: str, options: Mapping[str, Any]) -> RewardFunction:
  if "/" in name and ":" not in name:
    return make_reward("model", name_or_path=name, **options)
  return make_reward(name, **options)


def lora_config(options: PolicyConfig) -> LoraConfig | None:
  """The adapters that the flags ask for; None if all weights are trained."""
  if options.lora_rank == 0:
    return None
  alpha = 2.0 * options.lora_rank if options.lora_alpha is None else options.lora_alpha
  return LoraConfig(rank=options.lora_rank, alpha=alpha, targets=options.lora_targets)
