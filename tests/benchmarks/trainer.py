"""A whole training step of SmolLM2-135M against TRL's GRPOTrainer: rollouts, rewards, update.

The quickstart's model, prompts, group, lengths, reward and learning rate on both sides; GRPO
without KL, float32; TRL without recomputation, tea_jax with the preset's. Each side is a process of
its own, one after the other, with all processors; the first two steps (compilation, allocation) are
left out.
Needs `pip install trl torch==2.13.0` besides the test extra:

  python -m tests.benchmarks.trainer --steps 7
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping

from tea_jax.advantages import AdvantageSpec
from tea_jax.runs.presets import get_preset
from tests.benchmarks.common import peak_gib

WARM_UP = 2


def _config(folder: pathlib.Path, steps: int):
  config = get_preset("quickstart").config
  return dataclasses.replace(
    config,
    run_folder=str(folder / "run"),
    steps=steps,
    advantage=AdvantageSpec("grpo", {"normalize": True}),
    objective=dataclasses.replace(config.objective, kl_coefficient=0.0),
    checkpoint=dataclasses.replace(config.checkpoint, every=0),
  )


def tea_jax_side(folder: pathlib.Path, steps: int) -> list[float]:
  from tea_jax.runtime.compilation import enable_compilation_cache
  from tea_jax.training.loop import train

  enable_compilation_cache()
  seconds = []
  train(_config(folder, steps), on_step=lambda _, values: seconds.append(values["time/step"]))
  return seconds


def step_clock():
  """A callback of transformers' trainers that notes the `seconds` of each step."""
  import transformers

  class Clock(transformers.TrainerCallback):
    def __init__(self):
      self.seconds, self._last = [], time.perf_counter()

    def on_step_end(self, *_, **__):
      now = time.perf_counter()
      self.seconds.append(now - self._last)
      self._last = now

  return Clock()


def trl_side(folder: pathlib.Path, steps: int) -> list[float]:
  import datasets
  import torch
  import transformers
  import trl

  from tea_jax.runs import build
  from tea_jax.runs.datasets import load_splits

  torch.set_num_threads(len(os.sched_getaffinity(0)))
  config = _config(folder, steps)
  policy = build.load_run_policy(config)
  policy.save_pretrained(folder / "model")
  splits = load_splits(config.data)
  score = config.reward.build()
  group = config.sampling.num_rollouts

  def reward(prompts, completions, **_):
    return [float(value) for value in score(prompts, completions)]

  clock = step_clock()
  trainer = trl.GRPOTrainer(
    model=transformers.AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32),
    processing_class=transformers.AutoTokenizer.from_pretrained(folder / "model"),
    reward_funcs=reward,
    train_dataset=datasets.Dataset.from_list([{"prompt": p.text} for p in splits["train"]]),
    callbacks=[clock],
    args=trl.GRPOConfig(
      output_dir=str(folder / "trl"),
      use_cpu=True,
      bf16=False,
      max_steps=steps,
      learning_rate=config.optimizer.learning_rate,
      lr_scheduler_type="constant",
      num_generations=group,
      per_device_train_batch_size=group,
      gradient_accumulation_steps=config.data.prompts_per_step,
      max_completion_length=config.sampling.max_completion_length,
      temperature=config.sampling.temperature,
      gradient_checkpointing=False,
      beta=0.0,
      save_strategy="no",
      report_to=[],
    ),
  )
  trainer.train()
  return clock.seconds


SIDES = {"tea_jax": tea_jax_side, "trl": trl_side}


def compare_sides(
  sides: Mapping[str, Callable[[pathlib.Path, int], list[float]]],
  module: str,
  *,
  about: str | None,
  steps: int,
) -> None:
  """Runs each side in a process of its own and prints the ratio of their steps.

  Args:
    sides: "tea_jax" and "trl": a folder and a number of steps -> seconds of each.
    module: that runs as a script and calls this.
    about: for `--help`.
    steps: by default.
  """
  parser = argparse.ArgumentParser(description=about)
  parser.add_argument("--sides", nargs="+", choices=list(sides), default=list(sides))
  parser.add_argument("--steps", type=int, default=steps)
  parser.add_argument("--child", choices=list(sides), help=argparse.SUPPRESS)
  arguments = parser.parse_args()
  if arguments.child:
    with tempfile.TemporaryDirectory() as folder:
      seconds = sides[arguments.child](pathlib.Path(folder), arguments.steps)
    print(json.dumps({"seconds": seconds, "peak": peak_gib()}))
    return
  medians = {}
  for side in arguments.sides:
    command = [sys.executable, "-m", module, "--child", side]
    command += ["--steps", str(arguments.steps)]
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    measured = json.loads(lines.splitlines()[-1])
    steady = measured["seconds"][WARM_UP:]
    medians[side] = statistics.median(steady)
    print(
      f"{side}: median {medians[side]:.2f} s a step ({min(steady):.2f}-{max(steady):.2f}), "
      f"{60 / medians[side]:.1f} steps a minute, peak {measured['peak']:.1f} GiB",
      flush=True,
    )
  if len(medians) == 2:
    print(f"tea_jax: {medians['trl'] / medians['tea_jax']:.2f} times the steps a minute of trl")


if __name__ == "__main__":
  compare_sides(SIDES, "tests.benchmarks.trainer", about=__doc__, steps=7)
