"""Trains one policy: `python -m experiments.train --preset quickstart --advantage.name tea`.

Flags override the preset or `--config FILE`; `--dry-run` prints what would run and stops. Running
the same command again goes on from the last checkpoint.
"""

from __future__ import annotations

import contextlib
import pathlib
import sys

from experiments import command
from tea_jax.models.config import ModelConfig
from tea_jax.models.weights import huggingface
from tea_jax.runs.card import write_model_card
from tea_jax.runs.config import RunConfig, load_config
from tea_jax.runs.flags import parse as parse_flags
from tea_jax.runs.presets import PRESETS, get_preset
from tea_jax.runtime import processes
from tea_jax.runtime.compilation import enable_compilation_cache


def parse(arguments: list[str]) -> tuple[RunConfig, bool]:
  """`(config, dry run)`: the base is a preset or a YAML file, flags override it."""
  known, flags = command.first_flags(arguments, ("preset", "config"))
  if known.preset and known.config:
    raise ValueError(f"--preset {known.preset} and --config {known.config} exclude each other.")
  base = RunConfig()
  if known.preset:
    base = get_preset(known.preset).config
  elif known.config:
    base = load_config(known.config)
  about = f"{__doc__}\nAlso: --preset {{{','.join(PRESETS)}}}, --config FILE, --dry-run"
  prog = "python -m experiments.train"
  config = parse_flags(RunConfig, flags, prog=prog, default=base, description=about)
  return config, known.dry_run


def dry_run(config: RunConfig) -> None:
  """Prints what a run takes and, where it does not fit, what to change; loads no weights."""
  import jax

  from tea_jax.runs.plan import describe, estimate_memory
  from tea_jax.runs.plan_advice import advise, describe_advice

  print(f"rule: {config.advantage_rule()!r}")
  model = model_config(config.model.name)

  def estimated(config: RunConfig):
    return estimate_memory(config, model, num_devices=jax.device_count())

  estimate = estimated(config)
  print(describe(estimate))
  limit = estimate.limit
  if limit is not None and estimate.peak > limit:
    advice = advise(config, limit, lambda changed: estimated(changed).peak)
    print(describe_advice(advice, limit=limit))


def model_config(name: str) -> ModelConfig:
  """The shape of a model, from its config alone.

  Raises:
    FileNotFoundError: if it is neither local nor on the hub.
  """
  from tea_jax.models.weights import gguf, load
  from tea_jax.models.weights.gguf_file import GgufFile

  if name == load.SMOLLM2 or pathlib.Path(name).exists():
    path = load.resolve(name)
    return (
      gguf.config_from_gguf(GgufFile(path)) if path.is_file() else huggingface.read_config(path)[0]
    )
  if name.count("/") != 1 or pathlib.Path(name.partition("/")[0]).is_dir():
    load.resolve(name)  # raises: neither local nor a hub id
  from huggingface_hub import hf_hub_download

  try:
    return huggingface.read_config(pathlib.Path(hf_hub_download(name, "config.json")).parent)[0]
  except Exception as error:
    raise FileNotFoundError(
      f"the config of {name!r} is neither local nor to be had from the hub "
      f"({type(error).__name__}); pass --model.name with a folder that holds its config.json."
    ) from error


def main(arguments: list[str] | None = None) -> int:
  chosen = sys.argv[1:] if arguments is None else arguments
  return command.run(lambda: work(chosen), several_processes=True)


def work(arguments: list[str]) -> None:
  config, only_show = parse(arguments)
  if only_show:
    command.show_settings(config, {"seed": str(config.seed)})
    dry_run(config)
    return
  processes.connect(config.mesh.distributed)
  if processes.is_first():
    command.show_settings(config, {"seed": str(config.seed)})
  from tea_jax.evaluation.curves import draw_curves
  from tea_jax.training.loop import train

  enable_compilation_cache()
  result = train(config)
  if not processes.is_first():
    return
  write_model_card(result.policy_folder, config)
  with contextlib.suppress(ModuleNotFoundError):  # figures need tea-jax[plots]
    draw_curves(result.run_folder)
  last = result.metrics[-1]
  print(f"reward {last['reward/mean']:.4g} in step {last['step'] + 1}; {result.policy_folder}")


if __name__ == "__main__":
  sys.exit(main())
