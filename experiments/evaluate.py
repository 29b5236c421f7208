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

import yaml

from experiments import command, train
from tea_jax.evaluation import sources
from tea_jax.evaluation.named import records_of
from tea_jax.evaluation.records import Records
from tea_jax.evaluation.report import write_report
from tea_jax.evaluation.reward_files import is_reward_file
from tea_jax.rewards.verifiers import answer_reader
from tea_jax.runs import build
from tea_jax.runs.config import RunConfig, load_groups, to_dict
from tea_jax.runs.datasets import load_splits
from tea_jax.runs.flags import parse_tree
from tea_jax.runs.own_code import check_own_code
from tea_jax.runs.presets import get_preset
from tea_jax.runtime import processes
from tea_jax.runtime.compilation import enable_compilation_cache


@dataclasses.dataclass(frozen=True)
class Flags(sources.HeldOut):
  """How the policies are evaluated.

  Attributes:
    output: folder of the records and the report.
    baselines: labels that the others are compared with; the first policy by default.
    at_kl: draw the weights of run folders back towards those they began with until their KL on the
      held-out prompts, nats a completion, is this; None leaves them.
    figures: draw figures (needs matplotlib).
  """

  output: str = "runs/evaluation"
  at_kl: float | None = None
  baselines: tuple[str, ...] = ()
  figures: bool = True


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
  flags = parse_tree(
    Flags,
    arguments[split:],
    prog="python -m experiments.evaluate A B",
    default=Flags(**shared),
    description=about,
  )
  if stored and not known.preset:
    check_own_code(flags.reward, flags.data, stored[0].parent, said=arguments[split:])
  if not policies:
    raise ValueError("name at least one policy, e.g. base=smollm2-135m-instruct")
  return policies, flags, known.dry_run


def main(arguments: list[str] | None = None) -> int:
  chosen = sys.argv[1:] if arguments is None else arguments
  return command.run(lambda: work(chosen), several_processes=True)


def work(arguments: list[str]) -> None:
  policies, flags, dry_run = parse(arguments)
  if dry_run:
    print(yaml.safe_dump({"policies": policies} | to_dict(flags), sort_keys=False), end="")
    return
  processes.connect(flags.mesh.distributed)
  enable_compilation_cache()
  with processes.stopping_together(), processes.together():
    command.say(f"report: {evaluate(policies, flags)}")


def evaluate(policies: dict[str, list[str]], flags: Flags) -> str:
  """Evaluates the policies of each label and writes the report; its path."""
  kinds = {
    name: [sources.is_server(name), is_reward_file(name), sources.is_run(name)]
    for names in policies.values()
    for name in names
  }
  shared = {"set of flags": to_dict(flags), "set of policies": [policies, kinds]}
  processes.require_same(shared, "the evaluation")
  # Refuses a policy that is not there or not readable, before any is sampled.
  for name, (is_server, is_file, _) in kinds.items():
    if not is_server and not is_file:
      train.model_config(sources.finished_policy(name))
  splits = functools.cache(lambda: load_splits(flags.data))
  reward = functools.cache(lambda: flags.reward.build(build.reward_mesh(None)))
  runs: dict[str, list[Records]] = {}
  told: dict[str, str] = {}
  records = pathlib.Path(flags.output) / "records"
  for label, names in policies.items():
    folders = [label] if len(names) == 1 else [f"{label}-{index}" for index in range(len(names))]
    found = [
      records_of(name, flags, splits, reward, folder=folder, at_kl=flags.at_kl, say=command.say)
      for folder, name in zip([records / each for each in folders], names, strict=True)
    ]
    runs[label] = [each for each, _ in found]
    told[label] = ", ".join(about for _, about in found)
  write = functools.partial(
    write_report,
    flags.output,
    runs,
    baselines=flags.baselines or tuple(list(runs)[:1]),
    title="Evaluation",
    settings={
      **told,
      **{name: to_dict(getattr(flags, name)) for name in ("data", "reward", "sampling")},
    },
    budgets=flags.evaluation.budgets or None,
    figures=flags.figures,
    answer=answer_reader(flags.reward.answer_pattern),
  )
  return processes.on_first(lambda: str(write()))


if __name__ == "__main__":
  sys.exit(main())
