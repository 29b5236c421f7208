"""Records of what stands behind the name of a policy: weights of ours, or a completions server.

All are asked for the same held-out prompts. Records of rewards that were made elsewhere are read by
`reward_files`.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tea_jax.data import EncodedPrompts, Prompt
from tea_jax.data.templates import render_prompt
from tea_jax.evaluation.evaluate import (
  engine_sampler,
  evaluate_policy,
  generator_sampler,
  prompts_of_a_call,
)
from tea_jax.evaluation.identity import evaluation_spec, sampling_spec
from tea_jax.evaluation.records import Records
from tea_jax.models.policy import Policy
from tea_jax.models.weights.load import resolve
from tea_jax.models.weights.tokenizer import load_tokenizer
from tea_jax.rewards import RewardFunction
from tea_jax.rollout.engine import RolloutEngine
from tea_jax.runs import build, groups
from tea_jax.runs.config import RunConfig
from tea_jax.runs.reward import RewardConfig
from tea_jax.runtime.keys import make_key
from tea_jax.runtime.secrets import public_url
from tea_jax.scaling.completions_server import CompletionsServer


@dataclasses.dataclass(frozen=True)
class HeldOut:
  """On what policies are evaluated, and how they are sampled: groups of a run's flags.

  Attributes:
    server_model: name that a completions server knows its model by; none if empty.
  """

  server_model: str = ""
  model: groups.PolicyConfig = dataclasses.field(default_factory=groups.PolicyConfig)
  data: groups.DataConfig = dataclasses.field(default_factory=groups.DataConfig)
  reward: RewardConfig = dataclasses.field(default_factory=RewardConfig)
  sampling: groups.RolloutConfig = dataclasses.field(default_factory=groups.RolloutConfig)
  evaluation: groups.EvaluationConfig = dataclasses.field(default_factory=groups.EvaluationConfig)
  mesh: groups.MeshConfig = dataclasses.field(default_factory=groups.MeshConfig)


def is_server(name: str) -> bool:
  """Whether the name of a policy is the address of a completions server."""
  return name.startswith(("http://", "https://"))


def finished_policy(name: str) -> str:
  """What is loaded for a name: of a run folder, its finished policy.

  Raises:
    ValueError: for the folder of a run that has not ended.
  """
  folder = pathlib.Path(name)
  if not is_run(name):
    return name
  if not (folder / "policy").is_dir():
    raise ValueError(f"{name} holds no finished policy; let its run end first")
  return str(folder / "policy")


def is_run(name: str) -> bool:
  """Whether the name of a policy is the folder of a run, which knows what it began with."""
  return (pathlib.Path(name) / "config.yaml").is_file()


def load_finished(name: str, settings: HeldOut) -> Policy:
  """The policy behind a name, on the mesh of the settings; see `finished_policy`."""
  # Adapters are merged into a finished policy: rounding it to its base's dtype would lose them.
  finished = {"name": finished_policy(name), "param_dtype": "float32"}
  model = dataclasses.replace(settings.model, **finished)
  return build.load_run_policy(RunConfig(model=model, mesh=settings.mesh))


def evaluate_weights(
  policy: Policy,
  settings: HeldOut,
  prompts: EncodedPrompts,
  reward: RewardFunction,
  *,
  folder: str | os.PathLike[str],
  progress: Callable[[int, int], None] | None = None,
) -> Records:
  """Records of a policy of ours.

  Args:
    policy: to sample.
    settings: of the sampling; `evaluation` says how much and with which seed.
    prompts: encoded for the policy.
    reward: of the completions.
    folder: of the records.
    progress: called with the prompts done and their total.
  """
  engine = engine_of(policy, settings, prompts)
  return evaluate_engine(
    engine, policy.params, prompts, reward, settings, folder=folder, progress=progress
  )


def engine_of(policy: Policy, settings: HeldOut, prompts: EncodedPrompts) -> RolloutEngine:
  """The engine that samples a policy of ours as the settings say."""
  return RolloutEngine(
    policy,
    build.sampler_config(settings.sampling),
    smallest_prompt=max(map(len, prompts.tokens)),
    mesh=build.run_mesh(RunConfig(mesh=settings.mesh)),
  )


def spec_of(params: Any, settings: HeldOut | RunConfig) -> dict[str, Any]:
  """`evaluation_spec` of parameters under the settings."""
  shared = {name: getattr(settings, name) for name in ("model", "data", "sampling")}
  return evaluation_spec(params, **shared, seed=settings.evaluation.seed)


def evaluate_engine(
  engine: RolloutEngine,
  params: Any,
  prompts: EncodedPrompts,
  reward: RewardFunction,
  settings: HeldOut | RunConfig,
  *,
  folder: str | os.PathLike[str],
  about: Mapping[str, Any] | None = None,
  progress: Callable[[int, int], None] | None = None,
) -> Records:
  """Records of parameters that an engine samples from, in calls of `prompts_of_a_call`.

  Args:
    engine: for the settings' sampling.
    params: of the policy.
    prompts, reward, settings, folder, progress: see `evaluate_weights`.
    about: what else is written into the records' spec.
  """
  options = settings.evaluation
  prompts_per_call = prompts_of_a_call(
    len(prompts),
    prompts_per_step=settings.data.prompts_per_step,
    num_rollouts=settings.sampling.num_rollouts,
  )
  sampler = engine_sampler(
    engine,
    params,
    prompts,
    key=make_key(options.seed),
    num_samples=options.num_samples,
    prompts_per_call=prompts_per_call,
    rollouts_per_call=settings.sampling.num_rollouts,
  )
  return evaluate_policy(
    sampler,
    prompts.prompts,
    reward,
    folder=folder,
    num_samples=options.num_samples,
    spec={**(about or {}), **spec_of(params, settings)},
    prompts_per_part=prompts_per_call,
    progress=progress,
  )


def evaluate_server(
  url: str,
  settings: HeldOut,
  prompts: Sequence[Prompt],
  reward: RewardFunction,
  *,
  folder: str | os.PathLike[str],
  progress: Callable[[int, int], None] | None = None,
) -> Records:
  """Records of what a completions server answers; see `evaluate_weights`."""
  options = settings.evaluation
  server = completions_server(
    url,
    prompts,
    model=settings.model,
    data=settings.data,
    sampling=settings.sampling,
    server_model=settings.server_model,
    seed=options.seed,
  )
  shared = {"server_model": settings.server_model, "seed": options.seed}
  return evaluate_policy(
    generator_sampler(server, options.num_samples),
    prompts,
    reward,
    folder=folder,
    num_samples=options.num_samples,
    spec=shared | {"server": public_url(url), "sampling": sampling_spec(settings.sampling)},
    progress=progress,
  )


def completions_server(
  url: str,
  prompts: Sequence[Prompt],
  *,
  model: groups.PolicyConfig,
  data: groups.DataConfig,
  sampling: groups.RolloutConfig,
  server_model: str,
  seed: int,
  **options: Any,
) -> CompletionsServer:
  """A server that generates instead of a policy; `model.name` names its tokenizer for chats.

  Args:
    url: of the server.
    prompts: rendered as `data` says.
    model, data, sampling: groups of a run's flags.
    server_model: name that the server knows its model by.
    seed: of the sampling.
    **options: others of `CompletionsServer`.
  """
  tokenizer = load_tokenizer(resolve(model.name)) if data.chat else None
  template = "chat" if data.chat else "raw"
  return CompletionsServer(
    url,
    [render_prompt(prompt, tokenizer, template, data.system_prompt) for prompt in prompts],
    max_length=sampling.max_completion_length,
    model=server_model,
    prompt_ids=[prompt.id for prompt in prompts],
    temperature=sampling.temperature,
    top_p=sampling.top_p,
    seed=seed,
    **options,
  )
