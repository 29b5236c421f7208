"""Evaluates policies on the same held-out prompts: `python -m experiments.evaluate A B [flags]`.

A policy is `[label=]name`: a model name, a Hugging Face folder, a GGUF file, a run folder (its
finished policy), the http address of a completions server (vLLM, SGLang, llama.cpp), or a JSONL or
Parquet file of rewards (columns prompt, reward and, if there, completion). `label=run1,run2` pools
seeds. The defaults of the flags are those of `--preset`, or else of the first run. Writes records,
report.md and figures; the same command again goes on where it was.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import sys

import tyro
import yaml

from experiments import command, train
from tea_jax.data.templates import render_prompt
from tea_jax.evaluation.evaluate import (
  engine_sampler,
  evaluate_policy,
  generator_sampler,
  prompts_of_a_call,
)
from tea_jax.evaluation.identity import evaluation_spec
from tea_jax.evaluation.records import Records
from tea_jax.evaluation.report import write_report
from tea_jax.evaluation.reward_files import is_reward_file, read_reward_file
from tea_jax.models.policy import Policy
from tea_jax.models.weights.load import resolve
from tea_jax.models.weights.tokenizer import load_tokenizer
from tea_jax.rewards.verifiers import answer_reader
from tea_jax.rollout.engine import RolloutEngine
from tea_jax.rollout.sampling import SamplingConfig
from tea_jax.runs import build
from tea_jax.runs import groups as groups
from tea_jax.runs.config import RunConfig, load_groups, to_dict
from tea_jax.runs.own_code import check_own_code
from tea_jax.runs.presets import get_preset
from tea_jax.runtime.compilation import enable_compilation_cache
from tea_jax.runtime.keys import make_key
from tea_jax.runtime.secrets import public_url
from tea_jax.scaling.completions_server import CompletionsServer


@dataclasses.dataclass(frozen=True)
class Flags:
  """How the policies are evaluated.

  Attributes:
    output: folder of the records and the report.
    baselines: labels that the others are compared with; the first policy by default.
    figures: draw figures (needs matplotlib).
    server_model: name that a completions server knows its model by; none if empty.
  """

  output: str = "runs/evaluation"
  baselines: tuple[str, ...] = ()
  figures: bool = True
  server_model: str = ""
  model: groups.PolicyConfig = dataclasses.field(default_factory=groups.PolicyConfig)
  data: groups.DataConfig = dataclasses.field(default_factory=groups.DataConfig)
  reward: groups.RewardConfig = dataclasses.field(default_factory=groups.RewardConfig)
  sampling: groups.RolloutConfig = dataclasses.field(default_factory=groups.RolloutConfig)
  evaluation: groups.EvaluationConfig = dataclasses.field(default_factory=groups.EvaluationConfig)
  mesh: groups.MeshConfig = dataclasses.field(default_factory=groups.MeshConfig)


def parse(arguments: list[str]) -> tuple[dict[str, list[str]], Flags, bool]:
  """`(label -> policies, flags, dry run)`.

  The defaults are those of `--preset`, or else of the first run folder among the policies.
  """
  known, arguments = command.first_flags(arguments)
  split = next((i for i, word in enumerate(arguments) if word.startswith("-")), len(arguments))
  labelled = command.labelled(arguments[:split])
  policies = {
    label: [names] if pathlib.Path(names).exists() else names.split(",")
    for label, names in labelled.items()
  }
  folders = [pathlib.Path(name) for names in policies.values() for name in names]
  names = [f.name for f in dataclasses.fields(Flags) if f.name in RunConfig.__dataclass_fields__]
  stored = [f / "config.yaml" for f in folders if (f / "config.yaml").is_file()]
  shared = {}
  if known.preset:
    shared = {name: getattr(get_preset(known.preset).config, name) for name in names}
  elif stored:
    shared = load_groups(stored[0], names)
  about = f"{__doc__}\nAlso: --preset NAME for its defaults, and --dry-run, which only prints them."
  flags = tyro.cli(Flags, args=arguments[split:], default=Flags(**shared), description=about)
  if stored and not known.preset:
    check_own_code(flags.reward, flags.data, stored[0].parent, said=arguments[split:])
  if not policies:
    raise ValueError("name at least one policy, e.g. base=smollm2-135m-instruct")
  return policies, flags, known.dry_run


def check_policy(name: str) -> None:
  """Refuses a policy that is not there or not readable, before any is sampled."""
  train.model_config(_finished(name))


def _finished(name: str) -> str:
  """What is loaded for a name: of a run folder, its finished policy."""
  folder = pathlib.Path(name)
  if not (folder / "config.yaml").is_file():
    return name
  if not (folder / "policy").is_dir():
    raise ValueError(f"{name} holds no finished policy; let its run end first")
  return str(folder / "policy")


def load(name: str, flags: Flags) -> Policy:
  """The policy behind a name; of a run folder, the finished one."""
  model = dataclasses.replace(flags.model, name=_finished(name))
  return build.load_run_policy(RunConfig(model=model, mesh=flags.mesh))


def evaluate(label: str, policy: Policy, flags: Flags, splits: build.Splits, reward) -> Records:
  """Records of one policy."""
  options = flags.evaluation
  prompts = build.encode(splits["test"][: options.num_prompts], policy, flags.data, flags.sampling)
  names = ("temperature", "top_k", "top_p", "min_p", "max_completion_length")
  sampling = {name: getattr(flags.sampling, name) for name in names}
  engine = RolloutEngine(
    policy,
    SamplingConfig(**sampling),
    smallest_prompt=max(map(len, prompts.tokens)),
    mesh=build.run_mesh(RunConfig(mesh=flags.mesh)),
  )
  prompts_per_call = prompts_of_a_call(
    len(prompts),
    prompts_per_step=flags.data.prompts_per_step,
    num_rollouts=flags.sampling.num_rollouts,
  )
  sampler = engine_sampler(
    engine,
    policy.params,
    prompts,
    key=make_key(options.seed),
    num_samples=options.num_samples,
    prompts_per_call=prompts_per_call,
    rollouts_per_call=flags.sampling.num_rollouts,
  )
  print(f"{label}: {len(prompts)} prompts x {options.num_samples} completions", flush=True)
  return evaluate_policy(
    sampler,
    prompts.prompts,
    reward,
    folder=pathlib.Path(flags.output) / "records" / label,
    num_samples=options.num_samples,
    spec=evaluation_spec(
      policy.params,
      model=flags.model,
      data=flags.data,
      sampling=flags.sampling,
      seed=options.seed,
    ),
    prompts_per_part=prompts_per_call,
    progress=lambda done, total: print(f"  {done}/{total}", flush=True),
  )


def is_address(name: str) -> bool:
  """Whether a policy is a completions server's."""
  return name.startswith(("http://", "https://"))


def evaluate_server(label: str, url: str, flags: Flags, splits: build.Splits, reward) -> Records:
  """Records of what a completions server answers; `model.name` names its tokenizer for chats."""
  options, sampling = flags.evaluation, flags.sampling
  prompts = splits["test"][: options.num_prompts]
  tokenizer = load_tokenizer(resolve(flags.model.name)) if flags.data.chat else None
  template = "chat" if flags.data.chat else "raw"
  server = CompletionsServer(
    url,
    [render_prompt(prompt, tokenizer, template, flags.data.system_prompt) for prompt in prompts],
    max_length=sampling.max_completion_length,
    model=flags.server_model,
    prompt_ids=[prompt.id for prompt in prompts],
    temperature=sampling.temperature,
    top_p=sampling.top_p,
    seed=options.seed,
  )
  shared = {"server_model": flags.server_model, "seed": options.seed}
  print(f"{label}: {len(prompts)} prompts x {options.num_samples} completions", flush=True)
  return evaluate_policy(
    generator_sampler(server, options.num_samples),
    prompts,
    reward,
    folder=pathlib.Path(flags.output) / "records" / label,
    num_samples=options.num_samples,
    spec=shared | {"server": public_url(url), "sampling": to_dict(sampling)},
    progress=lambda done, total: print(f"  {done}/{total}", flush=True),
  )


def main(arguments: list[str] | None = None) -> int:
  return command.run(lambda: work(sys.argv[1:] if arguments is None else arguments))


def work(arguments: list[str]) -> None:
  policies, flags, dry_run = parse(arguments)
  if dry_run:
    print(yaml.safe_dump({"policies": policies} | to_dict(flags), sort_keys=False), end="")
    return
  enable_compilation_cache()
  for name in (name for names in policies.values() for name in names):
    if not is_address(name) and not is_reward_file(name):
      check_policy(name)
  splits = functools.cache(lambda: build.load_splits(flags.data))
  reward = functools.cache(lambda: build.make_run_reward(RunConfig(reward=flags.reward)))
  runs: dict[str, list[Records]] = {}
  for label, names in policies.items():
    for index, name in enumerate(names):
      folder = label if len(names) == 1 else f"{label}-{index}"
      if is_reward_file(name):
        record = read_reward_file(name)
      elif is_address(name):
        record = evaluate_server(folder, name, flags, splits(), reward())
      else:
        record = evaluate(folder, load(name, flags), flags, splits(), reward())
      runs.setdefault(label, []).append(record)
  report = write_report(
    flags.output,
    runs,
    baselines=flags.baselines or tuple(list(runs)[:1]),
    title="Evaluation",
    settings={
      **{label: ", ".join(names) for label, names in policies.items()},
      **{name: to_dict(getattr(flags, name)) for name in ("data", "reward", "sampling")},
    },
    budgets=flags.evaluation.budgets or None,
    figures=flags.figures,
    answer=answer_reader(flags.reward.answer_pattern),
  )
  print(f"report: {report}")


if __name__ == "__main__":
  sys.exit(main())
