"""From the flags to what a run works with, once: `build(config) -> Parts`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from tea_jax.advantages import GroupRule
from tea_jax.data import EncodedPrompts
from tea_jax.models.lora import LoraConfig
from tea_jax.models.policy import Policy
from tea_jax.models.sharding import make_mesh, param_shardings
from tea_jax.models.weights.load import load_policy
from tea_jax.rewards import RewardFunction
from tea_jax.rewards.signature import check_arguments
from tea_jax.rewards.verifiers import answer_reader
from tea_jax.rollout.sampling import SamplingConfig
from tea_jax.runs.config import RunConfig
from tea_jax.runs.datasets import Splits, encode, load_splits
from tea_jax.runs.groups import (
  CheckpointConfig,
  LoggingConfig,
  RolloutConfig,
  ValidationConfig,
)
from tea_jax.runs.objective import ObjectiveConfig
from tea_jax.runs.optimizer import OptimizerConfig
from tea_jax.runs.plan import decode_memory
from tea_jax.runs.supervised import SupervisedConfig
from tea_jax.runtime import processes


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
  loaded = policy or load_run_policy(config)
  loaded = with_param_dtype(loaded, config.model.param_dtype)
  borrowed = loaded is policy
  loaded = spread(loaded, mesh)
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
  reward = reward or config.reward.build(reward_mesh(mesh))
  check_arguments(reward, prompts.columns)
  return Parts(
    policy=loaded,
    borrowed=borrowed,
    mesh=mesh,
    prompts=prompts,
    validation_prompts=validated,
    reward=reward,
    rule=rule,
    answer=answer_reader(config.reward.answer_pattern),
    sampler=sampler_config(config.sampling),
    lora=config.model.lora,
    decode_memory=processes.agree(decode_memory(config, loaded.config)),
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


def spread(policy: Policy, mesh: jax.sharding.Mesh | None) -> Policy:
  """The policy with its weights on the devices of all processes; one process: as it is."""
  if not processes.several():
    return policy
  shardings = param_shardings(policy.params, policy.config, mesh)
  return dataclasses.replace(policy, params=processes.put(policy.params, shardings))


def reward_mesh(mesh: jax.sharding.Mesh | None) -> jax.sharding.Mesh | None:
  """Where reward models lie: on the mesh, or on the own devices of the process that scores."""
  if not processes.several():
    return mesh
  own = jax.local_devices()
  return make_mesh(fsdp=len(own), devices=own) if len(own) > 1 else None


def sampler_config(config: RolloutConfig) -> SamplingConfig:
  """How the engine draws tokens, from a run's group of flags."""
  names = ("temperature", "top_k", "top_p", "min_p", "max_completion_length")
  names += ("compactions", "cache_buckets", "decode_attention")
  return SamplingConfig(**{name: getattr(config, name) for name in names})


def with_param_dtype(policy: Policy, dtype: str) -> Policy:
  """The policy with weights of a dtype: float32 to train, since small steps round to nothing else.

  Args:
    policy: loaded, or brought by the caller.
    dtype: `model.param_dtype`.
  """
  wanted = jnp.dtype(dtype)
  if all(leaf.dtype == wanted for leaf in jax.tree.leaves(policy.params)):
    return policy
  params = jax.tree.map(lambda leaf: jnp.asarray(leaf, wanted), policy.params)
  return dataclasses.replace(policy, params=params)


def load_run_policy(config: RunConfig | SupervisedConfig) -> Policy:
  """The policy of a run, on its mesh; see `run_mesh`."""
  return load_policy(
    config.model.name,
    compute_dtype=config.model.compute_dtype,
    param_dtype=config.model.param_dtype,
    remat=config.model.remat,
    scan_layers=config.model.scan_layers,
    attention=config.model.attention,
    mesh=run_mesh(config),
  )


def run_mesh(config: RunConfig | SupervisedConfig) -> jax.sharding.Mesh | None:
  """The mesh of a run, over the devices of all its processes; None on a single device.

  Raises:
    ValueError: for sizes that do not fit the devices.
  """
  needed = config.mesh.fsdp * config.mesh.tensor * max(1, config.mesh.data)
  if needed > jax.device_count():
    raise ValueError(
      f"mesh data={config.mesh.data}, fsdp={config.mesh.fsdp}, tensor={config.mesh.tensor} needs "
      f"{needed} devices, but there are {jax.device_count()}."
    )
  if jax.device_count() == 1:
    return None
  return make_mesh(data=config.mesh.data, fsdp=config.mesh.fsdp, tensor=config.mesh.tensor)
