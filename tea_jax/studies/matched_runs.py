"""Matched runs of advantage rules: the same seeds, prompts, rollouts and evaluation for each.

Runs differ in their rule only. Every policy, the untrained one too, is judged on the same held-out
prompts with the same random numbers, so differences are paired by prompt.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tea_jax.advantages import AdvantageSpec
from tea_jax.data import EncodedPrompts
from tea_jax.evaluation.records import Records
from tea_jax.evaluation.sources import evaluate_engine
from tea_jax.models.policy import Policy
from tea_jax.models.weights.load import load_policy
from tea_jax.rewards import RewardFunction
from tea_jax.runs import build
from tea_jax.runs.config import RunConfig, to_dict
from tea_jax.runs.datasets import Splits, encode, load_splits
from tea_jax.runs.groups import RolloutConfig
from tea_jax.runs.plan import decode_memory
from tea_jax.runs.presets import Preset
from tea_jax.runs.supervised import SupervisedConfig
from tea_jax.runtime import processes
from tea_jax.runtime.countdown import Countdown
from tea_jax.runtime.memory import return_free_memory
from tea_jax.training.learner import make_learner
from tea_jax.training.loop import train

BASE = "base"


@dataclasses.dataclass(frozen=True)
class MatchedRuns:
  """What a comparison leaves.

  Attributes:
    records: `"base"` and each rule -> evaluations, one a seed (one for the base).
    metrics: rule -> the lines of `metrics.jsonl`, one list a seed.
    preset: what was compared.
  """

  records: Mapping[str, Sequence[Records]]
  metrics: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]]
  preset: Preset


def at_same_kl(config: RunConfig, kl: float) -> RunConfig:
  """The config with its KL coefficient steered so that runs of every rule end at this KL.

  Args:
    config: its `objective.kl_coefficient` is where the coefficient starts; 1 if it is 0.
    kl: to the base, nats a completion.
  """
  objective = config.objective
  start = objective.kl_coefficient or 1.0
  objective = dataclasses.replace(objective, kl_target=kl, kl_coefficient=start)
  return dataclasses.replace(config, objective=objective)


def moved(run: SupervisedConfig, before: Preset, after: Preset) -> SupervisedConfig:
  """A warm-up in the folder of one preset, moved into that of another."""
  old, new = before.config.run_folder, after.config.run_folder
  return dataclasses.replace(run, run_folder=run.run_folder.replace(old, new, 1))


def run_config_of(preset: Preset, rule: str, seed: int) -> RunConfig:
  """The preset's config for one rule and seed, in a folder of its own."""
  slug = re.sub(r"[^A-Za-z0-9_.+-]+", "_", rule)
  folder = pathlib.Path(preset.config.run_folder) / f"{slug}-seed{seed}"
  return dataclasses.replace(
    preset.config, run_folder=str(folder), seed=seed, advantage=AdvantageSpec.parse(rule)
  )


def train_matched(
  preset: Preset,
  *,
  policy: Policy | None = None,
  splits: Splits | None = None,
  reward: RewardFunction | None = None,
  sampling: RolloutConfig | None = None,
  say: Callable[[str], None] = print,
) -> MatchedRuns:
  """Trains every rule with every seed, evaluates all, and returns the records.

  Started again after an interruption it goes on where it was: finished evaluations are read, runs
  go on from their checkpoints. Several processes call it alike.

  Args:
    preset: config, rules and seeds.
    policy, splits, reward: instead of those of the config.
    sampling: how the completions of the evaluation are drawn; None for as in training.
    say: told what happens, a line at a time.

  Raises:
    ValueError: if rules or seeds are missing or repeated, or the held-out split is empty.
  """
  for name, values in (("rules", preset.rules), ("seeds", preset.seeds)):
    if not values or len(set(values)) != len(values):
      raise ValueError(f"{name}={values} must name at least one, each once.")
  runs = {(s, r): run_config_of(preset, r, s) for s in preset.seeds for r in preset.rules}
  config = preset.config
  evaluated = dataclasses.replace(config, sampling=sampling or config.sampling)
  settings = {
    "config": to_dict(config),
    "sampling of the evaluation": to_dict(evaluated.sampling),
    "rules and seeds": [preset.rules, preset.seeds],
  }
  processes.require_same(settings, "the comparison")
  mesh = build.run_mesh(config)
  policy = build.spread(policy or build.load_run_policy(config), mesh)
  splits = splits or load_splits(config.data)
  reward = reward or config.reward.build(build.reward_mesh(None))
  held_out = list(splits["test"])[: config.evaluation.num_prompts]
  if not held_out:
    raise ValueError("the test split has no prompts; set data.num_test.")
  prompts = encode(held_out, policy, evaluated.data, evaluated.sampling)

  def evaluate(name: str, params: Any) -> Records:
    samples = config.evaluation.num_samples
    say(f"evaluating {name}: {len(prompts)} prompts x {samples} completions")
    folder = pathlib.Path(config.run_folder) / "eval" / name
    clock = Countdown()
    found = evaluate_parameters(
      policy,
      params,
      prompts,
      reward,
      evaluated,
      folder=folder,
      progress=lambda done, total: say(f"evaluating {name}  {clock(done, total)}"),
    )
    return_free_memory()
    return found

  records: dict[str, list[Records]] = {BASE: [evaluate(BASE, policy.params)]}
  metrics: dict[str, list[Any]] = {}
  # Seeds outermost: an interrupted comparison holds matched runs.
  for (_, rule), run_config in runs.items():
    name = pathlib.Path(run_config.run_folder).name
    say(f"training {name}: {run_config.advantage_rule()!r}")
    result = train(run_config, policy=policy, splits=splits, reward=reward)
    params = result.policy.params
    if run_config.checkpoint.final_policy == "best" and result.best is not None:
      params = load_policy(str(result.policy_folder), mesh=mesh).params
    records.setdefault(rule, []).append(evaluate(name, params))
    metrics.setdefault(rule, []).append(result.metrics)
    del result, params
  return MatchedRuns(records, metrics, preset)


def evaluate_parameters(
  policy: Policy,
  params: Any,
  prompts: EncodedPrompts,
  reward: RewardFunction,
  config: RunConfig,
  *,
  folder: pathlib.Path,
  progress: Callable[[int, int], None] | None = None,
) -> Records:
  """Evaluates parameters with the engine that the run compiled; see `evaluate_engine`."""
  engine = make_learner(
    policy,
    sampler=build.sampler_config(config.sampling),
    objective=config.objective,
    optimizer=config.optimizer,
    lora=config.model.lora,
    memory=processes.agree(decode_memory(config, policy.config)),
    prompt_length=max(map(len, prompts.tokens)),
    mesh=build.run_mesh(config),
  ).engine
  about = {"name": folder.name, "model": config.model.name}
  return evaluate_engine(
    engine, params, prompts, reward, config, folder=folder, about=about, progress=progress
  )
