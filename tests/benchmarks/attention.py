"""Memory and processor time of the policy gradient with plain and fused attention, in turns.

python -m tests.benchmarks.attention --prompt 1024 --completion 512 --group 8 --layers 4
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from tea_jax.models.causal_lm import init_params
from tea_jax.models.logprobs import group_logprobs
from tea_jax.models.policy import Policy
from tea_jax.rollout.types import Rollouts
from tests.benchmarks.common import SMOLLM2

KINDS = ("auto", "fused")


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  for name, default in (("prompt", 1024), ("completion", 512), ("group", 8), ("layers", 4)):
    parser.add_argument(f"--{name}", type=int, default=default)
  parser.add_argument("--vocabulary", type=int, default=4096)
  parser.add_argument("--remat", default="full")
  parser.add_argument("--dtype", default="float32")
  parser.add_argument("--repeats", type=int, default=3, help="0 only compiles")
  arguments = parser.parse_args()
  config = dataclasses.replace(
    SMOLLM2, num_layers=arguments.layers, vocab_size=arguments.vocabulary
  )
  group, length = arguments.group, arguments.completion
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, config.vocab_size, (1, group, length))
  rollouts = Rollouts(
    prompt_tokens=jnp.asarray(rng.integers(0, config.vocab_size, (1, arguments.prompt))),
    prompt_lengths=jnp.asarray([arguments.prompt]),
    completion_tokens=jnp.asarray(tokens),
    completion_lengths=jnp.full((1, group), length),
    finished=jnp.ones((1, group), bool),
    logprobs=jnp.zeros(tokens.shape),
    sampling_logprobs=jnp.zeros(tokens.shape),
  )
  advantages = jnp.asarray(rng.normal(size=(1, group, 1)), jnp.float32)
  params = init_params(config, jax.random.key(0))

  def gradient_with(attention):
    policy = Policy(
      config, {}, compute_dtype=arguments.dtype, remat=arguments.remat, attention=attention
    )

    def loss(params):
      return jnp.sum(advantages * group_logprobs(policy, params, rollouts).logprobs)

    return jax.jit(jax.grad(loss)).lower(params).compile()

  compiled = {kind: gradient_with(kind) for kind in KINDS}
  for kind in KINDS:
    temporary = compiled[kind].memory_analysis().temp_size_in_bytes
    print(f"{kind}: {temporary / 2**20:.0f} MiB of temporary arrays", flush=True)
  times: dict[str, list[float]] = {kind: [] for kind in KINDS}
  for _ in range(arguments.repeats):
    for kind in KINDS:
      # Of the processor: other work on the machine does not count.
      started = time.process_time()
      jax.block_until_ready(compiled[kind](params))
      times[kind].append(time.process_time() - started)
      print(f"{kind}: {times[kind][-1]:.2f} s of processor", flush=True)
  if arguments.repeats:
    plain, fused = (statistics.median(times[kind]) for kind in KINDS)
    print(f"medians {plain:.2f} s and {fused:.2f} s: {fused / plain:.2f} of the time")


if __name__ == "__main__":
  main()
