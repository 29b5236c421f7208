"""Compares advantage rules: `python -m experiments.compare --preset quickstart`.

Trains every rule with every seed on the same prompts and budgets, evaluates all of them and the
untrained policy on held-out prompts, and writes figures, tables and report.md. Flags override the
preset; `--dry-run` prints what would run. The same command again goes on where it was.
"""

from __future__ import annotations

import dataclasses
import pathlib
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import tyro
import yaml

from experiments import command, train
from tea_jax.evaluation.report import write_report
from tea_jax.rewards.verifiers import answer_reader
from tea_jax.runs.config import RunConfig, to_dict
from tea_jax.runs.log import read_jsonl
from tea_jax.runs.presets import PRESETS, Preset, get_preset
from tea_jax.runtime.compilation import enable_compilation_cache
from tea_jax.studies.matched_runs import BASE, MatchedRuns, run_config_of, train_matched

RULES = "--rules tea:budget=256 grpo my_file.py:factory:margin=0.5"


@dataclasses.dataclass(frozen=True)
class Flags:
  """What may be said beside a preset.

  Attributes:
    rules: advantage rules to compare, each `name` or `name:argument=value,...`.
    seeds: of the runs; every rule runs with each.
    run: the config of every run; run_folder holds them all.
  """

  rules: tuple[str, ...]
  seeds: tuple[int, ...]
  run: Annotated[RunConfig, tyro.conf.arg(name="")]


def parse(arguments: list[str]) -> tuple[Preset, bool]:
  """`(preset with the flags' changes, dry run)`."""
  known, rest = command.first_flags(arguments)
  preset = get_preset(known.preset or "quickstart")
  about = "".join(f"\n  {name}: {each.about}" for name, each in PRESETS.items())
  named = [word for word in rest if word.startswith("--advantage")]
  if named:
    raise ValueError(f"{named[0]}: the rules that are compared are said by --rules, as in {RULES}.")
  flags = tyro.cli(
    Flags,
    args=rest,
    default=Flags(preset.rules, preset.seeds, preset.config),
    description=f"{__doc__}\nAlso: --dry-run, and --preset, one of:{about}",
  )
  return dataclasses.replace(
    preset, config=flags.run, rules=flags.rules, seeds=flags.seeds
  ), known.dry_run


def main(arguments: list[str] | None = None) -> int:
  return command.run(lambda: work(sys.argv[1:] if arguments is None else arguments))


def work(arguments: list[str]) -> None:
  preset, dry_run = parse(arguments)
  shown = {"rules": list(preset.rules), "seeds": list(preset.seeds)}
  print(yaml.safe_dump(shown | to_dict(preset.config), sort_keys=False), flush=True)
  for rule in preset.rules:
    print(f"rule: {run_config_of(preset, rule, preset.seeds[0]).advantage_rule()!r}")
  if dry_run:
    train.dry_run(preset.config)
    return
  enable_compilation_cache()
  started = time.perf_counter()
  runs = train_matched(preset)
  print(f"report: {report(runs, minutes=(time.perf_counter() - started) / 60)}")


def report(runs: MatchedRuns, *, minutes: float) -> pathlib.Path:
  """Writes tables, figures and report.md into the comparison's folder."""
  config, rules = runs.preset.config, runs.preset.rules
  first = "grpo" if "grpo" in rules else rules[-1]
  return write_report(
    config.run_folder,
    runs.records,
    baselines=(first, BASE),
    title=f"{', '.join(rules)}: best-of-N on held-out prompts",
    settings={
      "model": config.model.name,
      "reward": " + ".join(config.reward.functions),
      "steps": config.steps,
      "prompts a step": config.data.prompts_per_step,
      "rollouts a prompt (m)": config.sampling.num_rollouts,
      "completion length": config.sampling.max_completion_length,
      "learning rate": config.optimizer.learning_rate,
      "KL coefficient": config.objective.kl_coefficient,
      "seeds": ", ".join(map(str, runs.preset.seeds)),
      "held-out prompts x completions": f"{len(runs.records[BASE][0].prompts)} x "
      f"{config.evaluation.num_samples}",
    },
    budgets=config.evaluation.budgets or None,
    answer=answer_reader(config.reward.answer_pattern),
    notes=[*_training_notes(runs), f"This call took {minutes:.1f} minutes."],
    curves=runs.metrics,
  )


def _training_notes(runs: MatchedRuns) -> list[str]:
  notes = []
  for rule, seeds in runs.metrics.items():
    last = [[line["reward/mean"] for line in lines[-10:]] for lines in seeds]
    entropy = [[line["entropy"] for line in lines[-10:]] for lines in seeds]
    folders = [run_config_of(runs.preset, rule, seed).run_folder for seed in runs.preset.seeds]
    timings = [read_jsonl(pathlib.Path(folder) / "timings.jsonl") for folder in folders]
    seconds = statistics.median(line["time/step"] for lines in timings for line in lines)
    notes.append(
      f"{rule}: training reward of the last 10 steps {_mean(last):.3f}, entropy "
      f"{_mean(entropy):.3f} nats a token{_divergence(seeds)}, median step {seconds:.2f} s."
    )
  return notes


def _divergence(seeds: Sequence[Sequence[Mapping[str, Any]]]) -> str:
  kl = [[line["kl"] for line in lines[-10:] if "kl" in line] for lines in seeds]
  return f", KL to the base {_mean(kl):.3f} nats a completion" if any(kl) else ""


def _mean(groups: list[list[float]]) -> float:
  return statistics.fmean(value for group in groups for value in group)


if __name__ == "__main__":
  sys.exit(main())
