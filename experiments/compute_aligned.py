"""Compute-aligned training: `python -m experiments.compute_aligned --preset cat-protein`.

`--theory` writes the scaling factors, alignment coefficients and crossovers in seconds. A preset
trains its base model and every rule or objective with every seed, and writes report.md with the
published numbers beside ours. `--rules`, `--seeds`, `--steps`, `--match-kl` and `--run-folder`
override the preset; `--dry-run` prints what would run. The same command again goes on where it was.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import tyro

from experiments import command
from tea_jax.advantages import AdvantageSpec
from tea_jax.runs.config import RunConfig
from tea_jax.runs.supervised import SupervisedConfig
from tea_jax.runtime.compilation import enable_compilation_cache
from tea_jax.studies.matched_runs import at_same_kl

if TYPE_CHECKING:
  from tea_jax.studies.compute_aligned.branches import BranchExperiment
  from tea_jax.studies.compute_aligned.protein_runs import ProteinExperiment
  from tea_jax.studies.compute_aligned.rewarded_runs import RewardedExperiment

Run = TypeVar("Run", RunConfig, SupervisedConfig)
Experiment = TypeVar("Experiment", "ProteinExperiment", "RewardedExperiment")


@dataclasses.dataclass(frozen=True)
class Flags:
  """What is run.

  Attributes:
    theory: write the theory's numbers and figure, train nothing.
    preset: a named experiment.
    rules: advantage rules or objectives, instead of the preset's.
    seeds: instead of the preset's.
    steps: of each rule, instead of the preset's; 0 for those.
    match_kl: steer the KL coefficient of every rule to this KL, nats a completion; 0 keeps it.
      Supervised objectives have none.
    run_folder: where everything goes; empty for the preset's.
    figure: draw figures (needs matplotlib).
    dry_run: print what would run.
  """

  theory: bool = False
  preset: str = ""
  rules: tuple[str, ...] = ()
  seeds: tuple[int, ...] = ()
  steps: int = 0
  match_kl: float = 0.0
  run_folder: str = ""
  figure: bool = True
  dry_run: bool = False


def main(arguments: list[str] | None = None) -> int:
  return command.run(lambda: work(sys.argv[1:] if arguments is None else arguments))


def work(arguments: list[str]) -> None:
  from tea_jax.studies.compute_aligned.presets import BRANCHES, REWARDED
  from tea_jax.studies.compute_aligned.protein_presets import PROTEINS
  from tea_jax.studies.compute_aligned.protein_runs import run_proteins
  from tea_jax.studies.compute_aligned.rewarded_runs import run_rewarded

  presets = {name: each.preset.about for name, each in {**PROTEINS, **REWARDED}.items()}
  presets |= {name: each.about for name, each in BRANCHES.items()}
  about = "".join(f"\n  {name}: {each}" for name, each in presets.items())
  prog, about = "python -m experiments.compute_aligned", f"{__doc__}\nPresets:{about}"
  flags = tyro.cli(Flags, prog=prog, args=arguments, description=about)
  if not flags.dry_run:
    enable_compilation_cache()
  if flags.theory:
    from tea_jax.studies.compute_aligned.theory import write_theory

    folder = pathlib.Path(flags.run_folder or "runs/compute-aligned-theory")
    print(f"report: {write_theory(folder, figure=flags.figure)}")
  elif flags.preset in PROTEINS:
    run_rules(flags, PROTEINS[flags.preset], run_proteins)
  elif flags.preset in BRANCHES:
    run_branches(flags, BRANCHES[flags.preset])
  elif flags.preset in REWARDED:
    run_rules(flags, REWARDED[flags.preset], run_rewarded)
  else:
    known = ", ".join(presets)
    raise ValueError(f"unknown preset {flags.preset!r}; use --theory, or one of {known}.")


def run_rules(flags: Flags, experiment: Experiment, run: Callable[[Experiment], object]) -> None:
  preset, config = experiment.preset, changed_run(experiment.preset.config, flags)
  if flags.match_kl:
    config = at_same_kl(config, flags.match_kl)
  rules, seeds = flags.rules or preset.rules, flags.seeds or preset.seeds
  for rule in rules:
    AdvantageSpec.parse(rule).build()
  show(config, "rule", rules, seeds)
  if not flags.dry_run:
    changed = dataclasses.replace(preset, config=config, rules=rules, seeds=seeds)
    run(experiment.with_preset(changed))
    show_report(config)


def run_branches(flags: Flags, experiment: BranchExperiment) -> None:
  from tea_jax.studies.compute_aligned import branches

  if flags.match_kl:
    raise ValueError(
      f"--match-kl {flags.match_kl} has no effect on supervised objectives; leave it out of "
      f"--preset {flags.preset}."
    )
  experiment = dataclasses.replace(
    experiment,
    config=changed_run(experiment.config, flags),
    objectives=flags.rules or experiment.objectives,
    seeds=flags.seeds or experiment.seeds,
  )
  for objective in experiment.objectives:
    branches.parse_objective(objective)
  show(experiment.config, "objective", experiment.objectives, experiment.seeds)
  if not flags.dry_run:
    branches.run_branches(experiment)
    show_report(experiment.config)


def changed_run(config: Run, flags: Flags) -> Run:
  steps, folder = flags.steps or config.steps, flags.run_folder or config.run_folder
  return dataclasses.replace(config, steps=steps, run_folder=folder)


def show(
  config: RunConfig | SupervisedConfig, name: str, compared: Sequence[str], seeds: Sequence[int]
) -> None:
  command.show_settings(config, {"seeds": " ".join(map(str, seeds))})
  for each in compared:
    print(f"{name}: {each}", flush=True)


def show_report(config: RunConfig | SupervisedConfig) -> None:
  print(f"report: {pathlib.Path(config.run_folder) / 'report.md'}")


if __name__ == "__main__":
  sys.exit(main())
