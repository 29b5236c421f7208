"""Supervised training: `python -m experiments.finetune --data.pairs pairs.jsonl`.

Flags override `--config FILE`; `--warm-start FOLDER` starts from the policy of another run;
`--dry-run` prints what would run and stops. Running the same command again goes on from the last
checkpoint.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys

from experiments import command
from tea_jax.runs.config import read_config
from tea_jax.runs.flags import parse_tree
from tea_jax.runs.supervised import SupervisedConfig
from tea_jax.runtime import processes
from tea_jax.runtime.compilation import enable_compilation_cache


def parse(arguments: list[str]) -> tuple[SupervisedConfig, bool]:
  """`(config, dry run)`: the base is a YAML file or the defaults, flags override it."""
  known, flags = command.first_flags(arguments, ("config", "warm-start"))
  base = read_config(SupervisedConfig, known.config) if known.config else SupervisedConfig()
  if known.warm_start:
    folder = pathlib.Path(known.warm_start)
    policy = folder / "policy"
    model = dataclasses.replace(base.model, name=str(policy if policy.is_dir() else folder))
    base = dataclasses.replace(base, model=model)
  config = parse_tree(
    SupervisedConfig,
    flags,
    prog="python -m experiments.finetune",
    default=base,
    description=f"{__doc__}\nAlso: --config FILE, --warm-start FOLDER, --dry-run",
  )
  return config, known.dry_run


def main(arguments: list[str] | None = None) -> int:
  chosen = sys.argv[1:] if arguments is None else arguments
  return command.run(lambda: work(chosen), several_processes=True)


def work(arguments: list[str]) -> None:
  config, only_show = parse(arguments)
  if not only_show:
    processes.connect(config.mesh.distributed)
  if only_show or processes.is_first():
    command.show_settings(config, {"seed": str(config.seed)})
  if only_show:
    print(f"objective: {config.objective.name}, weights of {config.objective.strategy}")
    return
  from tea_jax.training.supervised import train_supervised

  enable_compilation_cache()
  result = train_supervised(config)
  last = result.metrics[-1]
  held_out = f", held out {last['validation/loss']:.4g}" if "validation/loss" in last else ""
  command.say(
    f"loss {last['loss']:.4g} in step {last['step'] + 1}{held_out}; {result.policy_folder}"
  )


if __name__ == "__main__":
  sys.exit(main())
