"""Rollouts of SmolLM2's shape: tokens per second against `transformers` generate.

All sides in turns in one run, the same number of threads, random weights, no early stop. The side
`products` runs nothing but the products with the weights that these tokens need: the bound that
attention, sampling and everything else can only add to.

  python -m tests.benchmarks.rollout --group 16 --dtype float32
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics

import jax
import jax.numpy as jnp
import numpy as np

from tea_jax.models.causal_lm import init_params
from tea_jax.models.layers import times_transposed
from tea_jax.models.policy import Policy
from tea_jax.rollout.engine import RolloutEngine
from tea_jax.rollout.sampling import SamplingConfig
from tea_jax.runtime.compilation import enable_compilation_cache
from tests.benchmarks.common import SMOLLM2, seconds, torch_model


@functools.partial(jax.jit, static_argnames="tokens")
def products(weights, x, *, tokens: int):
  """`x [R, D]` through every kernel of the decoder and the head, `tokens` times."""

  def times(x, weights):
    y = times_transposed(x, weights["kernel_transposed"])
    # Keeps the chain away from denormal numbers, which are slow.
    return y / jnp.maximum(jnp.max(jnp.abs(y)), 1e-6)

  def token(_, x):
    for layer in weights["layers"]:
      attention, mlp = layer["attention"], layer["mlp"]
      x = times(times(x, attention["query_key_value"])[:, : x.shape[1]], attention["output"])
      inner = times(x, mlp["gate_up"])
      x = times(inner[:, : inner.shape[1] // 2], mlp["down"])
    return times(x, {"kernel_transposed": weights["embed"]["embedding"]})[:, : x.shape[1]]

  return jax.lax.fori_loop(0, tokens, token, x)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--group", type=int, nargs="+", default=[16, 64])
  parser.add_argument("--prompt", type=int, default=32)
  parser.add_argument("--new-tokens", type=int, default=64)
  parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument("--sides", nargs="+", default=["jax", "torch", "products"])
  parser.add_argument("--cache", action="store_true", help="use the compilation cache")
  arguments = parser.parse_args()
  if arguments.cache:
    enable_compilation_cache()
  prompt = np.random.default_rng(0).integers(0, SMOLLM2.vocab_size, arguments.prompt)
  runs = {}
  params = init_params(SMOLLM2, jax.random.key(0))
  policy = Policy(SMOLLM2, params, compute_dtype=arguments.dtype)
  if "jax" in arguments.sides:
    sampling = SamplingConfig(max_completion_length=arguments.new_tokens)
    engine = RolloutEngine(policy, sampling)

    def jax_side(group: int) -> None:
      engine.generate(params, [prompt.tolist()], key=jax.random.key(1), num_rollouts=group)

    runs["jax"] = jax_side
  if "torch" in arguments.sides:
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = torch_model(arguments.dtype).eval()
    tokens = torch.as_tensor(prompt)[None]

    def torch_side(group: int) -> None:
      with torch.no_grad():
        model.generate(
          tokens,
          attention_mask=torch.ones_like(tokens),
          do_sample=True,
          temperature=1.0,
          top_k=0,
          top_p=1.0,
          num_return_sequences=group,
          max_new_tokens=arguments.new_tokens,
          min_new_tokens=arguments.new_tokens,
        )

    runs["torch"] = torch_side
  if "products" in arguments.sides:
    weights = policy.decode_weights(params)

    def products_side(group: int) -> None:
      x = jax.random.normal(jax.random.key(2), (group, SMOLLM2.hidden_size), policy.dtype)
      jax.block_until_ready(products(weights, x, tokens=arguments.new_tokens))

    runs["products"] = products_side
  for group in arguments.group:
    timed = {side: functools.partial(run, group) for side, run in runs.items()}
    rates = {}
    for side, times in seconds(timed, arguments.repeats).items():
      rates[side] = group * arguments.new_tokens / statistics.median(times.wall)
      print(f"{side} {arguments.dtype} group {group}: {rates[side]:.0f} tok/s, {times}", flush=True)
    if "jax" in rates and "torch" in rates:
      print(f"group {group}: {rates['jax'] / rates['torch']:.2f} times torch", flush=True)


if __name__ == "__main__":
  main()
