"""Base rewards for `--reward.calibrate`: `python -m experiments.calibrate --preset quickstart`.

Samples completions of every prompt from the untrained policy, scores them, and writes one line a
prompt to `<run folder>/base_rewards.jsonl`. Flags are those of `experiments.train`;
`evaluation.num_samples` completions a prompt. The same command again goes on where it was.
"""

from __future__ import annotations

import json
import pathlib
import sys

from experiments import command, train
from experiments.train import parse
from tea_jax.runs import build
from tea_jax.runs.config import RunConfig
from tea_jax.runs.datasets import encode, load_splits
from tea_jax.runtime.compilation import enable_compilation_cache
from tea_jax.runtime.files import write_text
from tea_jax.studies.matched_runs import BASE, evaluate_parameters


def main(arguments: list[str] | None = None) -> int:
  return command.run(lambda: work(sys.argv[1:] if arguments is None else arguments))


def work(arguments: list[str]) -> None:
  config, dry_run = parse(arguments)
  if config.reward.calibrate:
    raise ValueError(
      f"reward.calibrate={config.reward.calibrate}: leave it out, the base rewards are those of "
      "the reward itself."
    )
  if dry_run:
    train.dry_run(config)
    return
  enable_compilation_cache()
  print(f"wrote {calibrate(config)}; pass it as --reward.calibrate")


def calibrate(config: RunConfig) -> pathlib.Path:
  """Samples and scores the prompts of all splits; returns the file."""
  policy, splits = build.load_run_policy(config), load_splits(config.data)
  prompts = [prompt for name in ("train", "validation", "test") for prompt in splits[name]]
  records = evaluate_parameters(
    policy,
    policy.params,
    encode(prompts, policy, config.data, config.sampling),
    config.reward.build(),
    config,
    folder=pathlib.Path(config.run_folder) / "calibration" / BASE,
    progress=lambda done, total: print(f"{done}/{total} prompts", flush=True),
  )
  path = pathlib.Path(config.run_folder) / "base_rewards.jsonl"
  lines = [
    json.dumps({"prompt": prompt, "rewards": [float(value) for value in rewards]})
    for prompt, rewards in zip(records.prompts, records.rewards)
  ]
  write_text(path, "\n".join(lines) + "\n")
  return path


if __name__ == "__main__":
  sys.exit(main())
