"""Compares advantage rules: `python -m experiments.compare --preset quickstart`.

Trains every rule with every seed on the same prompts and budgets, evaluates all of them and the
untrained policy on held-out prompts, and writes figures, tables and report.md. Flags override the
preset; `--dry-run` prints what would run. The same command again goes on where it was.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from typing import Annotated

import tyro

from experiments import command, train
from tea_jax.runs.config import RunConfig
from tea_jax.runs.flags import parse_tree
from tea_jax.runs.presets import PRESETS, Preset, get_preset
from tea_jax.runtime import processes
from tea_jax.runtime.compilation import enable_compilation_cache
from tea_jax.studies.matched_report import matched_verdicts, report
from tea_jax.studies.matched_runs import at_same_kl, run_config_of, train_matched

RULES = "--rules tea:budget=256 grpo my_file.py:factory:margin=0.5"


@dataclasses.dataclass(frozen=True)
class Flags:
  """What may be said beside a preset.

  Attributes:
    rules: advantage rules to compare, each `name` or `name:argument=value,...`.
    seeds: of the runs; every rule runs with each.
    match_kl: train every rule to this KL to the base, nats a completion, so that the frontiers
      are compared at the same KL; None for the same coefficient.
    run: the config of every run; run_folder holds them all.
  """

  rules: tuple[str, ...]
  seeds: tuple[int, ...]
  match_kl: float | None
  run: Annotated[RunConfig, tyro.conf.arg(name="")]


def parse(arguments: list[str]) -> tuple[Preset, bool]:
  """`(preset with the flags' changes, dry run)`."""
  known, rest = command.first_flags(arguments)
  preset = get_preset(known.preset or "quickstart")
  about = "".join(f"\n  {name}: {each.about}" for name, each in PRESETS.items())
  named = [word for word in rest if word.startswith("--advantage")]
  if named:
    raise ValueError(f"{named[0]}: the rules that are compared are said by --rules, as in {RULES}.")
  flags = parse_tree(
    Flags,
    rest,
    prog="python -m experiments.compare",
    default=Flags(preset.rules, preset.seeds, None, preset.config),
    description=f"{__doc__}\nAlso: --dry-run, and --preset, one of:{about}",
  )
  config = flags.run if flags.match_kl is None else at_same_kl(flags.run, flags.match_kl)
  return dataclasses.replace(
    preset, config=config, rules=flags.rules, seeds=flags.seeds
  ), known.dry_run


def main(arguments: list[str] | None = None) -> int:
  chosen = sys.argv[1:] if arguments is None else arguments
  return command.run(lambda: work(chosen), several_processes=True)


def work(arguments: list[str]) -> None:
  preset, dry_run = parse(arguments)
  if not dry_run:
    processes.connect(preset.config.mesh.distributed)
  if dry_run or processes.is_first():
    command.show_settings(preset.config, {"seeds": " ".join(map(str, preset.seeds))})
    for rule in preset.rules:
      print(f"rule: {run_config_of(preset, rule, preset.seeds[0]).advantage_rule()!r}", flush=True)
  if dry_run:
    train.dry_run(preset.config)
    return
  enable_compilation_cache()
  started = time.perf_counter()
  with processes.stopping_together(), processes.together():
    runs = train_matched(preset, say=command.say)
    if processes.is_first():
      path = report(runs, minutes=(time.perf_counter() - started) / 60)
      for sentence in matched_verdicts(runs):
        print(f"\n{sentence}")
      print(f"\nreport: {path}")


if __name__ == "__main__":
  sys.exit(main())
