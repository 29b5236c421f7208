"""A supervised run of a few thousand parameters; also a process that can be killed."""

from __future__ import annotations

import dataclasses
import sys

from tea_jax.data import make_prompt
from tea_jax.data.supervised import Pair, make_pairs
from tea_jax.runs.folder import RunFolder
from tea_jax.runs.groups import CheckpointConfig, LoggingConfig
from tea_jax.runs.optimizer import OptimizerConfig
from tea_jax.runs.supervised import PairConfig, SupervisedConfig, SupervisedObjectiveConfig
from tea_jax.training.supervised import SupervisedResult, SupervisedRun, train_supervised
from tests.training import tiny


def splits(num_train: int = 18) -> dict[str, list[Pair]]:
  """The answer is the next one or two words."""

  def row(i: int):
    answer = " ".join(f"w{(i + j + 1) % 22}" for j in range(1 + i % 2))
    return make_prompt(f"w{i % 22} w{i * 7 % 22}", {"answer": answer})

  return {
    "train": make_pairs(row(i) for i in range(num_train)),
    "validation": make_pairs(row(i) for i in range(num_train, num_train + 3)),
  }


def config(folder, **changes) -> SupervisedConfig:
  base = SupervisedConfig(
    run_folder=str(folder),
    steps=6,
    validation_every=3,
    data=PairConfig(chat=False, max_length=16, batch_size=4),
    objective=SupervisedObjectiveConfig(name="pass_at_n", budget=4),
    optimizer=OptimizerConfig(learning_rate=0.02),
    checkpoint=CheckpointConfig(every=2, final_policy="last"),
    logging=LoggingConfig(live=False),
  )
  for name, value in changes.items():
    if isinstance(value, dict):
      changes[name] = dataclasses.replace(getattr(base, name), **value)
  return dataclasses.replace(base, **changes)


def run(config: SupervisedConfig, policy=None, **options) -> SupervisedResult:
  options = {"splits": splits(), "console": tiny.console(), **options}
  return train_supervised(config, policy=policy or tiny.policy(), **options)


def main(folder: str) -> None:
  """Announces each stage, so that a test can kill the process in the middle of it."""
  run = SupervisedRun(
    config(folder, steps=8),
    RunFolder(config(folder, steps=8)),
    policy=tiny.policy(),
    splits=splits(),
    console=tiny.console(),
  )
  for stage, name in {"update": "update", "validation": "_validate", "checkpoint": "_save"}.items():
    setattr(run, name, _announced(stage, getattr(run, name)))
  run.train()
  print("done", flush=True)


def _announced(stage, method):
  def wrapped(*arguments, **options):
    print(stage, flush=True)
    return method(*arguments, **options)

  return wrapped


if __name__ == "__main__":
  main(sys.argv[1])
