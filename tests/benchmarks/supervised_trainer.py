"""A supervised step of SmolLM2-135M against TRL's SFTTrainer: the same pairs, batch and loss.

Worked sums of 2 to 12 terms, whose lengths differ as in real data: tea_jax batches alike lengths,
TRL pads a random batch; TERMS=3,3 in the environment makes lengths equal. Loss on the completion
alone, AdamW in float32; TRL without recomputation, tea_jax with the presets'. Each is a process
of its own, one after the other, with all processors; the first steps (compilation, allocation) are
left out. Needs `pip install trl torch==2.13.0` besides the test extra:

  python -m tests.benchmarks.supervised_trainer --steps 10
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib

from tea_jax.data.tasks import read_task
from tea_jax.runs.groups import CheckpointConfig, LoggingConfig
from tea_jax.studies.compute_aligned.presets import BRANCHES
from tea_jax.studies.compute_aligned.sums import work_out
from tests.benchmarks.trainer import compare_sides, step_clock


def _config(folder: pathlib.Path, steps: int):
  least, most = os.environ.get("TERMS", "2,12").split(",")
  task = f"reasoning_gym:chain_sum?min_terms={least}&max_terms={most}&min_digits=2&max_digits=2"
  rows = [
    {"prompt": row["prompt"], "solution": work_out(json.loads(row["metadata"])["expression"])}
    for row in read_task(task)
  ]
  file = folder / "pairs.jsonl"
  file.write_text("".join(json.dumps(row) + "\n" for row in rows))
  config = BRANCHES["cat-majority-quickstart"].config
  return dataclasses.replace(
    config,
    run_folder=str(folder / "run"),
    steps=steps,
    validation_every=0,
    data=dataclasses.replace(config.data, pairs=str(file), max_length=384),
    checkpoint=CheckpointConfig(every=0, final_policy="last"),
    logging=LoggingConfig(live=False),
  )


def tea_jax_side(folder: pathlib.Path, steps: int) -> list[float]:
  from tea_jax.runtime.compilation import enable_compilation_cache
  from tea_jax.training.supervised import train_supervised

  enable_compilation_cache()
  seconds = []
  train_supervised(
    _config(folder, steps), on_step=lambda _, values: seconds.append(values["time/step"])
  )
  return seconds


def trl_side(folder: pathlib.Path, steps: int) -> list[float]:
  import datasets
  import torch
  import transformers
  import trl

  from tea_jax.runs import build
  from tea_jax.runs.datasets import load_pair_splits

  torch.set_num_threads(len(os.sched_getaffinity(0)))
  config = _config(folder, steps)
  build.load_run_policy(config).save_pretrained(folder / "model")
  pairs = load_pair_splits(config.data)["train"]

  clock = step_clock()
  trainer = trl.SFTTrainer(
    model=transformers.AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32),
    processing_class=transformers.AutoTokenizer.from_pretrained(folder / "model"),
    train_dataset=datasets.Dataset.from_list(
      [{"prompt": pair.prompt.text, "completion": pair.completion} for pair in pairs]
    ),
    callbacks=[clock],
    args=trl.SFTConfig(
      output_dir=str(folder / "trl"),
      use_cpu=True,
      bf16=False,
      max_steps=steps,
      learning_rate=config.optimizer.learning_rate,
      lr_scheduler_type="constant",
      per_device_train_batch_size=config.data.batch_size,
      max_length=config.data.max_length,
      completion_only_loss=True,
      packing=False,
      gradient_checkpointing=False,
      save_strategy="no",
      report_to=[],
    ),
  )
  trainer.train()
  return clock.seconds


SIDES = {"tea_jax": tea_jax_side, "trl": trl_side}

if __name__ == "__main__":
  compare_sides(SIDES, "tests.benchmarks.supervised_trainer", about=__doc__, steps=10)
