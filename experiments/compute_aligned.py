"""Compute-aligned training: `python -m experiments.compute_aligned --preset cat-protein`.

`--theory` writes the scaling factors, alignment coefficients and crossovers in seconds. A preset
trains its base model and every rule or objective with every seed, and writes report.md with the
published numbers beside ours. `--rules`, `--seeds`, `--steps` and `--run-folder` override the
preset; `--dry-run` prints what would run. The same command again goes on where it was.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from typing import TYPE_CHECKING, Any

import tyro
import yaml

from experiments import command
from tea_jax.runs.config import to_dict
from tea_jax.runtime.compilation import enable_compilation_cache

if TYPE_CHECKING:
  from tea_jax.studies.compute_aligned.branches import BranchExperiment
  from tea_jax.studies.compute_aligned.protein_runs import ProteinExperiment


@dataclasses.dataclass(frozen=True)
class Flags:
  """What is run.

  Attributes:
    theory: write the theory's numbers and figure, train nothing.
    preset: a named experiment.
    rules: advantage rules or objectives, instead of the preset's.
    seeds: instead of the preset's.
    steps: of each rule, instead of the preset's; 0 for those.
    run_folder: where everything goes; empty for the preset's.
    figure: draw figures (needs matplotlib).
    dry_run: print what would run.
  """

  theory: bool = False
  preset: str = ""
  rules: tuple[str, ...] = ()
  seeds: tuple[int, ...] = ()
  steps: int = 0
  run_folder: str = ""
  figure: bool = True
  dry_run: bool = False


def main(arguments: list[str] | None = None) -> int:
  return command.run(lambda: work(sys.argv[1:] if arguments is None else arguments))


def work(arguments: list[str]) -> None:
  from tea_jax.studies.compute_aligned.presets import BRANCHES, PROTEINS

  presets = {name: each.preset.about for name, each in PROTEINS.items()}
  presets |= {name: each.about for name, each in BRANCHES.items()}
  about = "".join(f"\n  {name}: {each}" for name, each in presets.items())
  flags = tyro.cli(
    Flags,
    prog="python -m experiments.compute_aligned",
    args=arguments,
    description=f"{__doc__}\nPresets:{about}",
  )
  if flags.theory:
    from tea_jax.studies.compute_aligned.theory import write_theory

    folder = pathlib.Path(flags.run_folder or "runs/compute-aligned-theory")
    print(f"report: {write_theory(folder, figure=flags.figure)}")
  elif flags.preset in PROTEINS:
    run_proteins(flags, PROTEINS[flags.preset])
  elif flags.preset in BRANCHES:
    run_branches(flags, BRANCHES[flags.preset])
  else:
    known = ", ".join(presets)
    raise ValueError(f"unknown preset {flags.preset!r}; use --theory, or one of {known}.")


def run_proteins(flags: Flags, experiment: ProteinExperiment) -> None:
  """A protein experiment with the flags' changes."""
  from tea_jax.studies.compute_aligned import protein_runs

  preset = experiment.preset
  config = dataclasses.replace(preset.config, steps=flags.steps or preset.config.steps)
  changes: dict = {}
  if flags.run_folder:
    config = dataclasses.replace(config, run_folder=flags.run_folder)
    for name in ("warm_up", "second_warm_up"):
      run = getattr(experiment, name)
      if run is not None:
        changes[name] = dataclasses.replace(run, run_folder=f"{flags.run_folder}/{name}")
  preset = dataclasses.replace(
    preset, config=config, rules=flags.rules or preset.rules, seeds=flags.seeds or preset.seeds
  )
  _show(config, rules=preset.rules, seeds=preset.seeds)
  if not flags.dry_run:
    enable_compilation_cache()
    protein_runs.run_proteins(dataclasses.replace(experiment, preset=preset, **changes))
    print(f"report: {pathlib.Path(config.run_folder) / 'report.md'}")


def run_branches(flags: Flags, experiment: BranchExperiment) -> None:
  """A comparison of supervised objectives with the flags' changes."""
  from tea_jax.studies.compute_aligned import branches

  config = experiment.config
  config = dataclasses.replace(
    config,
    steps=flags.steps or config.steps,
    run_folder=flags.run_folder or config.run_folder,
  )
  experiment = dataclasses.replace(
    experiment,
    config=config,
    objectives=flags.rules or experiment.objectives,
    seeds=flags.seeds or experiment.seeds,
  )
  for objective in experiment.objectives:
    branches.parse_objective(objective)
  _show(config, objectives=experiment.objectives, seeds=experiment.seeds)
  if not flags.dry_run:
    enable_compilation_cache()
    branches.run_branches(experiment)
    print(f"report: {pathlib.Path(config.run_folder) / 'report.md'}")


def _show(config: Any, **shown: Any) -> None:
  listed = {name: list(values) for name, values in shown.items()}
  print(yaml.safe_dump(listed | to_dict(config), sort_keys=False), flush=True)


if __name__ == "__main__":
  sys.exit(main())
