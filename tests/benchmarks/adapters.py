"""The quickstart's update with rank-16 adapters: beside the kernels, merged into them, and without.

`merged` differentiates a loss through `merge_adapters`, as tea_jax once did; `base` moves next to
nothing, so it is the least that adapters of any kind can take; `all weights` trains no adapters.
All in turns in one run; compare processor times where the machine is shared:

  OMP_NUM_THREADS=1 taskset -c 0 python -m tests.benchmarks.adapters
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import statistics
from collections.abc import Callable
from unittest import mock

import jax
import numpy as np

from tea_jax.models.causal_lm import init_params
from tea_jax.models.lora import LoraConfig, merge_adapters
from tea_jax.models.policy import Policy
from tea_jax.runs.build import sampler_config
from tea_jax.runs.presets import get_preset
from tea_jax.training.learner import make_learner
from tests.benchmarks.common import SMOLLM2, seconds
from tests.benchmarks.plan_memory import make_batch

RANK = 16
SIDES = {
  "beside": LoraConfig(RANK),
  "merged": LoraConfig(RANK, alpha=31.0),  # a learner of its own
  "base": LoraConfig(1, targets=("value",)),
  "all weights": None,
}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
  parser.add_argument("--remat", choices=("none", "dots", "full"), default="dots")
  parser.add_argument("--repeats", type=int, default=5)
  arguments = parser.parse_args()
  config = get_preset("quickstart").config
  config = dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, data=1))
  params = init_params(SMOLLM2, jax.random.key(0))
  group, length = config.sampling.num_rollouts, config.sampling.max_completion_length
  batch = make_batch(config)
  batch = batch._replace(
    rollouts=batch.rollouts._replace(completion_lengths=np.full((1, group), length, np.int32)),
    advantages=np.random.default_rng(0).normal(size=(1, group)).astype(np.float32),
    reference_logprobs=np.zeros((1, group, length), np.float32),
  )

  def side(name: str) -> Callable[[], None]:
    learner = make_learner(
      Policy(SMOLLM2, {}, remat=arguments.remat),
      sampler=sampler_config(config.sampling),
      objective=config.objective,
      optimizer=config.optimizer,
      lora=SIDES[name],
      prompt_length=config.data.max_prompt_length,
    )
    trainable, frozen = learner.start(params, jax.random.key(1))
    moving = [trainable, learner.init_optimizer(trainable)]
    patched = mock.patch("tea_jax.training.learner.attach_adapters", merge_adapters)

    def run() -> None:
      # It matters to the first call, which compiles.
      with patched if name == "merged" else contextlib.nullcontext():
        new = learner.update(*moving, frozen, batch, np.float32(1e-5), np.float32(2))
      moving[:] = [new.trainable, new.optimizer_state]
      jax.block_until_ready(moving)

    return run

  times = seconds({name: side(name) for name in arguments.sides}, arguments.repeats)
  first = statistics.median(times[arguments.sides[0]].processor)
  for name, found in times.items():
    ratio = statistics.median(found.processor) / first
    print(f"{name}: {found}, {ratio:.2f} of {arguments.sides[0]}", flush=True)


if __name__ == "__main__":
  main()
