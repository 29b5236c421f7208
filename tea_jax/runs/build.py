"""From the flags to what a run works with, once: `build(config) -> Parts`."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tea_jax.advantages import GroupRule
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
from tea_jax.data.supervised import EncodedPairs, Pair, encode_pairs, make_pairs
from tea_jax.models.lora import LoraConfig
from tea_jax.models.policy import Policy
from tea_jax.models.sharding import make_mesh
from tea_jax.models.weights.load import load_policy
from tea_jax.rewards import RewardFunction, WeightedReward, make_reward
from tea_jax.rewards.calibration import CalibratedReward, read_base_rewards
from tea_jax.rewards.signature import check_arguments
from tea_jax.rewards.verifiers import answer_reader
from tea_jax.rollout.sampling import SamplingConfig
from tea_jax.runs.config import RunConfig
from tea_jax.runs.groups import (
  CheckpointConfig,
  DataConfig,
  LoggingConfig,
  RolloutConfig,
  ValidationConfig,
)
from tea_jax.runs.objective import ObjectiveConfig
from tea_jax.runs.optimizer import OptimizerConfig
from tea_jax.runs.plan import decode_memory
from tea_jax.runs.supervised import PairConfig, SupervisedConfig
from tea_jax.runtime.secrets import public_text, public_values

logger = logging.getLogger(__name__)

Splits = Mapping[str, Sequence[Prompt]]


@dataclasses.dataclass(frozen=True)
class Parts:
  """What a run works with: objects that were built from its flags, and what its loop counts.

  Attributes:
    policy: the start, on its mesh.
    borrowed: the caller needs the policy's weights later; train a copy.
    mesh: of the devices; None on one.
    prompts: encoded training prompts.
    validation_prompts: encoded validation prompts; empty for a run that does not validate.
    reward, rule: what scores completions, and what makes advantages of scores.
    answer: reads the answer that votes out of a completion.
    sampler: how tokens are drawn.
    lora: adapters that are trained; None if all weights are.
    decode_memory: bytes of each copy of the model for rows that are decoded together.
    steps, seed: number of steps, root of all random keys.
    prompts_per_step, num_rollouts: P and m of a step.
    objective, optimizer, checkpoint, validation, logging: groups of settings, as in `RunConfig`.
  """

  policy: Policy
  borrowed: bool
  mesh: jax.sharding.Mesh | None
  prompts: EncodedPrompts
  validation_prompts: EncodedPrompts
  reward: RewardFunction
  rule: GroupRule
  answer: Callable[[str], str | None]
  sampler: SamplingConfig
  lora: LoraConfig | None
  decode_memory: int
  steps: int
  seed: int
  prompts_per_step: int
  num_rollouts: int
  objective: ObjectiveConfig
  optimizer: OptimizerConfig
  checkpoint: CheckpointConfig
  validation: ValidationConfig
  logging: LoggingConfig

  @property
  def longest_prompt(self) -> int:
    """Tokens of the longest prompt that the run samples from."""
    return max(len(t) for data in (self.prompts, self.validation_prompts) for t in data.tokens)


def build(
  config: RunConfig,
  *,
  policy: Policy | None = None,
  splits: Splits | None = None,
  reward: RewardFunction | None = None,
  rule: GroupRule | None = None,
) -> Parts:
  """Loads and checks everything that a run needs; nothing is sampled or compiled.

  Args:
    config: of the run.
    policy, splits, reward, rule: instead of what the config names.

  Raises:
    ValueError: for inputs that do not fit each other.
  """
  mesh = run_mesh(config)
  loaded = _with_float32_weights(policy or load_run_policy(config))
  splits = splits or load_splits(config.data)
  rule = rule or config.advantage_rule()
  rule.check_num_rollouts(config.sampling.num_rollouts)
  validated = EncodedPrompts([], [], [])
  if config.validation.every:
    chosen = list(splits.get("validation", ()))[: config.validation.num_prompts]
    if not chosen:
      raise ValueError("validation.every > 0 needs validation prompts; set data.num_validation.")
    validated = encode(chosen, loaded, config.data, config.sampling)
  if not splits.get("train"):
    raise ValueError("there are no training prompts; name some by data.prompts.")
  prompts = encode(splits["train"], loaded, config.data, config.sampling)
  reward = reward or make_run_reward(config)
  check_arguments(reward, prompts.columns)
  return Parts(
    policy=loaded,
    borrowed=loaded is policy,
    mesh=mesh,
    prompts=prompts,
    validation_prompts=validated,
    reward=reward,
    rule=rule,
    answer=answer_reader(config.reward.answer_pattern),
    sampler=sampler_config(config.sampling),
    lora=config.model.lora,
    decode_memory=decode_memory(config, loaded.config),
    steps=config.steps,
    seed=config.seed,
    prompts_per_step=config.data.prompts_per_step,
    num_rollouts=config.sampling.num_rollouts,
    objective=config.objective,
    optimizer=config.optimizer,
    checkpoint=config.checkpoint,
    validation=config.validation,
    logging=config.logging,
  )


def sampler_config(config: RolloutConfig) -> SamplingConfig:
  """How the engine draws tokens, from a run's group of flags."""
  names = ("temperature", "top_k", "top_p", "min_p", "max_completion_length")
  return SamplingConfig(**{name: getattr(config, name) for name in names})


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
  return split_by_hash(prompts, _fitting(sizes, len(prompts)))


def _fitting(sizes: Mapping[str, int], num_prompts: int) -> dict[str, int]:
  """Sizes of the held-out splits; at most a quarter each of few prompts, and said so."""
  if sum(sizes.values()) < num_prompts:
    return dict(sizes)
  fitting = {name: min(size, max(1, num_prompts // 4)) for name, size in sizes.items()}
  logger.warning(
    "the %d prompts are too few to hold out %s; holding out %s instead (data.num_test, "
    "data.num_validation)",
    num_prompts,
    dict(sizes),
    fitting,
  )
  return fitting


def _with_float32_weights(policy: Policy) -> Policy:
  """The policy with float32 master weights: steps of 1e-6 round to nothing in fewer bits."""
  if all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(policy.params)):
    return policy
  params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), policy.params)
  return dataclasses.replace(policy, params=params)


def encode(
  prompts: Sequence[Prompt], policy: Policy, options: DataConfig, sampling: RolloutConfig
) -> EncodedPrompts:
  """Token ids of prompts under the run's template; over-long ones are dropped and counted.

  Raises:
    ValueError: if no prompt leaves room for a completion in the model's context.
  """
  room = policy.config.max_positions - sampling.max_completion_length
  if room < 1:
    raise ValueError(
      f"sampling.max_completion_length={sampling.max_completion_length} leaves no room for a "
      f"prompt in the model's context of {policy.config.max_positions} tokens."
    )
  recipe = RECIPES.get(options.prompts.replace("-", "_"))
  system_prompt = options.system_prompt
  if system_prompt is None and recipe is not None:
    system_prompt = recipe.system_prompt
  return encode_prompts(
    prompts,
    policy.tokenizer,
    template="chat" if options.chat else "raw",
    max_prompt_length=min(options.max_prompt_length, room),
    system_prompt=system_prompt,
  )


def load_pair_splits(options: PairConfig) -> dict[str, list[Pair]]:
  """`train`, `validation` and `test` pairs, disjoint by the content of their prompts."""
  if not options.pairs:
    raise ValueError(
      "data.pairs is empty; name a recipe (gsm8k, math), reasoning_gym:task, a .jsonl or .parquet "
      "file, or a Hugging Face dataset."
    )
  recipe = options.pairs.replace("-", "_")
  if recipe in RECIPES:
    splits = load_recipe(recipe)
    splits = {"test": splits["core500"], **splits}
  else:
    prompts = load_prompts(options.pairs, prompt_column=options.prompt_column)
    sizes = {"test": options.num_test, "validation": options.num_validation}
    splits = split_by_hash(prompts, sizes)

  def pairs(name: str, limit: int) -> list[Pair]:
    if not splits[name]:
      return []
    made = make_pairs(
      splits[name],
      target=options.target,
      column=options.completion_column,
      levels=options.levels,
    )
    return made[:limit] if limit else made

  return {
    "train": pairs("train", options.limit),
    "validation": pairs("validation", options.num_validation),
    "test": pairs("test", options.num_test),
  }


def encode_run_pairs(pairs: Sequence[Pair], policy: Policy, options: PairConfig) -> EncodedPairs:
  """Token ids of pairs under the run's template; over-long ones are dropped and counted."""
  recipe = RECIPES.get(options.pairs.replace("-", "_"))
  system_prompt = options.system_prompt
  if system_prompt is None and recipe is not None:
    system_prompt = recipe.system_prompt
  own = getattr(policy.tokenizer, "eos_token_id", None)
  ends = policy.config.eos_token_ids
  if options.max_length > policy.config.max_positions:
    raise ValueError(
      f"data.max_length={options.max_length} is beyond the model's context of "
      f"{policy.config.max_positions} tokens."
    )
  return encode_pairs(
    pairs,
    policy.tokenizer,
    end_token=own if own in ends else ends[0],
    max_length=options.max_length,
    template="chat" if options.chat else "raw",
    system_prompt=system_prompt,
    add_end=options.end_token,
  )


def load_run_policy(config: RunConfig | SupervisedConfig) -> Policy:
  """The policy of a run, on its mesh."""
  return load_policy(
    config.model.name,
    compute_dtype=config.model.compute_dtype,
    remat=config.model.remat,
    scan_layers=config.model.scan_layers,
    attention=config.model.attention,
    mesh=run_mesh(config),
  )


def run_mesh(config: RunConfig | SupervisedConfig) -> jax.sharding.Mesh | None:
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
      public_text(name): (_make_reward(name, options.get(name, {})), weight)
      for name, weight in zip(names, weights)
    }
  )
  # Records tell rewards apart by name; where a server is does not make another reward.
  same = config.reward.identity()
  reward.name = " + ".join(f"{weight:g} {name}" for name, weight in zip(same.functions, weights))
  if same.options != "{}":
    reward.name += f" {json.dumps(public_values(json.loads(same.options)), sort_keys=True)}"
  if config.reward.calibrate:
    return CalibratedReward(reward, read_base_rewards(config.reward.calibrate))
  return reward


def _make_reward(name: str, options: Mapping[str, Any]) -> RewardFunction:
  if "/" in name and ":" not in name:
    return make_reward("model", name_or_path=name, **options)
  return make_reward(name, **options)
