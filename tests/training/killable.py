"""A tiny run in a process of its own that announces where it is.

`killable.py FOLDER [asynchronous]`; the second writes checkpoints while training goes on.
"""

from __future__ import annotations

import sys

from tea_jax.runs.build import build
from tea_jax.runs.folder import RunFolder
from tea_jax.training.loop import Run
from tests.training import tiny


def config(folder, asynchronous=False):
  return tiny.config(
    folder,
    steps=8,
    checkpoint={"every": 2, "asynchronous": asynchronous},
    validation={"every": 4},
    advantage={"name": "cat_best_of_n", "quantile": "tracked"},
    logging={"samples_every": 1},
  )


def main(folder: str, *options: str) -> None:
  settings = config(folder, "asynchronous" in options)
  parts = build(settings, policy=tiny.policy(), splits=tiny.splits(), reward=tiny.reward)
  run = Run(parts, RunFolder(settings), console=tiny.console())
  for stage, name in {
    "rollout": "_sample",
    "reward": "scorer",
    "update": "_update",
    "validation": "_validate",
    "checkpoint": "_save",
  }.items():
    setattr(run, name, _Announced(stage, getattr(run, name)))
  run.train(lambda step, record: print("step", step, flush=True))
  print("done", flush=True)


class _Announced:
  """What it wraps, but that a call of it is told first."""

  def __init__(self, stage, wrapped):
    self._stage, self._wrapped = stage, wrapped

  def __call__(self, *arguments, **options):
    print(self._stage, flush=True)
    return self._wrapped(*arguments, **options)

  def __getattr__(self, name):
    return getattr(self._wrapped, name)


if __name__ == "__main__":
  main(*sys.argv[1:])
