"""Time and memory of every advantage rule, beside `grpo`. Run by hand, not a test.

  python -m tests.benchmarks.advantage_rules
  python -m tests.benchmarks.advantage_rules --shapes 256,64 --rules tea grpo

Times are the median of repeated calls of the compiled rule, float32 rewards; temporary bytes are
what XLA allocates beside input and output.
"""

from __future__ import annotations

import argparse
import statistics
import time

import jax
import jax.numpy as jnp

from tea_jax.advantages import available_advantages, make_advantage


def named_inputs(shape: tuple[int, int]) -> dict[str, jax.Array]:
  return {
    "key": jax.random.key(1),
    "logprobs": -jax.random.exponential(jax.random.key(2), shape),
    "answers": jax.random.randint(jax.random.key(3), shape, -1, 8),
  }


def measure(name: str, shape: tuple[int, int], repeats: int, budget_seconds: float) -> dict:
  rule = make_advantage(name)
  rewards, inputs = jax.random.normal(jax.random.key(0), shape), named_inputs(shape)
  start = time.perf_counter()
  lowered = jax.jit(lambda rewards, inputs: rule(rewards, **inputs)).lower(rewards, inputs)
  compiled = lowered.compile()
  compile_seconds = time.perf_counter() - start
  jax.block_until_ready(compiled(rewards, inputs))
  times: list[float] = []
  while len(times) < 3 or (len(times) < repeats and sum(times) < budget_seconds):
    start = time.perf_counter()
    jax.block_until_ready(compiled(rewards, inputs))
    times.append(time.perf_counter() - start)
  memory = compiled.memory_analysis()
  return {
    "milliseconds": 1e3 * statistics.median(times),
    "temporary_bytes": memory.temp_size_in_bytes if memory is not None else 0,
    "compile_seconds": compile_seconds,
  }


def print_table(shape: tuple[int, int], names: list[str], repeats: int, seconds: float) -> None:
  size = jnp.dtype(jnp.float32).itemsize * shape[0] * shape[1]
  print(f"\nrewards {list(shape)} float32, {size / 2**20:.2f} MiB, {jax.default_backend()}")
  print(f"{'rule':20s} {'ms':>9s} {'x grpo':>7s} {'temporary MiB':>14s} {'compile s':>10s}")
  floor = None
  for name in names:
    result = measure(name, shape, repeats, seconds)
    floor = result["milliseconds"] if name == "grpo" else floor
    ratio = f"{result['milliseconds'] / floor:7.1f}" if floor else "      -"
    print(
      f"{name:20s} {result['milliseconds']:9.3f} {ratio} "
      f"{result['temporary_bytes'] / 2**20:14.2f} {result['compile_seconds']:10.2f}",
      flush=True,
    )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--shapes", nargs="+", default=["256,64", "16384,64"])
  parser.add_argument("--rules", nargs="+", default=["grpo", *available_advantages()])
  parser.add_argument("--repeats", type=int, default=20)
  parser.add_argument("--seconds", type=float, default=1.0, help="at most, for each rule")
  arguments = parser.parse_args()
  for text in arguments.shapes:
    num_prompts, num_rollouts = map(int, text.split(","))
    shape = (num_prompts, num_rollouts)
    names = list(dict.fromkeys(arguments.rules))
    print_table(shape, names, arguments.repeats, arguments.seconds)


if __name__ == "__main__":
  main()
