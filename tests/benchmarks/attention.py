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
from jaxtyping import Array, Float

from tea_jax.models.causal_lm import Params, init_params
from tea_jax.models.config import ModelConfig
from tea_jax.models.logprobs import group_logprobs
from tea_jax.models.policy import Policy
from tea_jax.rollout.types import Rollouts
from tests.benchmarks.common import SMOLLM2

KINDS = ("auto", "fused")


def random_group(
  config: ModelConfig, *, prompt: int, completion: int, group: int
) -> tuple[Rollouts, Float[Array, "1 m 1"]]:
  """Random tokens of one prompt's rollouts, none of which ends early, and random advantages."""
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, config.vocab_size, (1, group, completion))
  rollouts = Rollouts(
    prompt_tokens=jnp.asarray(rng.integers(0, config.vocab_size, (1, prompt))),
    prompt_lengths=jnp.asarray([prompt]),
    completion_tokens=jnp.asarray(tokens),
    completion_lengths=jnp.full((1, group), completion),
    finished=jnp.ones((1, group), bool),
    logprobs=jnp.zeros(tokens.shape),
    sampling_logprobs=jnp.zeros(tokens.shape),
  )
  return rollouts, jnp.asarray(rng.normal(size=(1, group, 1)), jnp.float32)


def compiled_gradient(
  policy: Policy, params: Params, rollouts: Rollouts, advantages: Array
) -> jax.stages.Compiled:
  """The policy gradient of a group as a compiled function of `params`."""

  def loss(params):
    return jnp.sum(advantages * group_logprobs(policy, params, rollouts).logprobs)

  return jax.jit(jax.grad(loss)).lower(params).compile()


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
  rollouts, advantages = random_group(
    config, prompt=arguments.prompt, completion=arguments.completion, group=arguments.group
  )
  params = init_params(config, jax.random.key(0))
  options = {"compute_dtype": arguments.dtype, "remat": arguments.remat}
  compiled = {
    kind: compiled_gradient(
      Policy(config, {}, attention=kind, **options), params, rollouts, advantages
    )
    for kind in KINDS
  }
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
