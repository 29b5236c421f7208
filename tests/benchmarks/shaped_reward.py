"""Times shaped rewards of a batch of groups against a vectorised numpy.partition.

Run: python -m tests.benchmarks.shaped_reward [--repeats 50]

The two take turns in one process, so that a busy machine slows both. Printed for each shape: the
medians, their ratio, and the time of GRPO's mean-centring, which reads and writes the same array
and is the floor.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import jax
import numpy as np

from tea_jax.tail import shaped_reward, tail_constants, tail_count, tail_vector

TAIL_FRACTION, BUDGET = 0.25, 128
SHAPES = ((16384, 64), (64, 4096))


def numpy_shaped_reward(rewards: np.ndarray) -> np.ndarray:
  """The definition, vectorised over groups."""
  num_rollouts = rewards.shape[-1]
  count = tail_count(num_rollouts, TAIL_FRACTION)
  curvature = np.float32(tail_constants(TAIL_FRACTION, BUDGET).curvature)
  top = np.partition(rewards, num_rollouts - count, axis=-1)[..., num_rollouts - count :]
  threshold = top[..., :1]
  mean = top.mean(axis=-1, keepdims=True)
  scale = np.maximum(top.std(axis=-1, keepdims=True), np.float32(1e-12))
  bend = curvature / (2 * scale) * ((rewards - mean) ** 2 - (threshold - mean) ** 2)
  return np.where(rewards >= threshold, (rewards - threshold + bend) / TAIL_FRACTION, 0)


def lean_numpy_shaped_reward(rewards: np.ndarray) -> np.ndarray:
  """The same with every temporary array saved that can be."""
  num_rollouts = rewards.shape[-1]
  count = tail_count(num_rollouts, TAIL_FRACTION)
  curvature = np.float32(tail_constants(TAIL_FRACTION, BUDGET).curvature)
  top = np.partition(rewards, num_rollouts - count, axis=-1)[..., num_rollouts - count :]
  threshold = top[..., :1].copy()
  top -= top.mean(axis=-1, keepdims=True)
  mean_excess = -top[..., :1]
  scale = np.sqrt(np.einsum("...i,...i->...", top, top)[..., None] / np.float32(count))
  excess = np.maximum(rewards, threshold)
  excess -= threshold
  bend = excess - 2 * mean_excess
  bend *= curvature / (2 * np.maximum(scale, np.float32(1e-12)))
  bend += 1
  bend *= excess
  bend *= np.float32(1 / TAIL_FRACTION)
  return bend


@jax.jit
def our_shaped_reward(rewards: jax.Array) -> jax.Array:
  tail = tail_vector(rewards, TAIL_FRACTION)
  return shaped_reward(rewards, tail, tail_fraction=TAIL_FRACTION, budget=BUDGET)


@jax.jit
def centred(rewards: jax.Array) -> jax.Array:
  return rewards - rewards.mean(axis=-1, keepdims=True)


def milliseconds(function: Callable[[], object]) -> float:
  start = time.perf_counter()
  jax.block_until_ready(function())
  return 1e3 * (time.perf_counter() - start)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--repeats", type=int, default=50)
  repeats = parser.parse_args().repeats
  print(f"{jax.devices()[0].platform}, numpy {np.__version__}, jax {jax.__version__}")
  for shape in SHAPES:
    host = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    device = jax.device_put(host)
    first = milliseconds(lambda: our_shaped_reward(device))  # noqa: B023
    # float32 against float64 of the definition: the two are one function.
    exact = numpy_shaped_reward(host.astype(np.float64))
    error = np.abs(np.asarray(our_shaped_reward(device)) - exact).max() / np.abs(exact).max()
    contenders = {
      "numpy.partition": lambda: numpy_shaped_reward(host),  # noqa: B023
      "numpy.partition, lean": lambda: lean_numpy_shaped_reward(host),  # noqa: B023
      "tea_jax": lambda: our_shaped_reward(device),  # noqa: B023
      "mean-centring": lambda: centred(device),  # noqa: B023
    }
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats + 1):
      for name, function in contenders.items():
        times[name].append(milliseconds(function))
    print(f"\nrewards {list(shape)} float32, compiled in {first / 1e3:.1f} s, error {error:.1e}")
    medians = {name: statistics.median(values[1:]) for name, values in times.items()}
    for name, median in medians.items():
      ratio = median / medians["tea_jax"]
      fastest = min(times[name][1:])
      print(f"  {name:22} {median:8.3f} ms (fastest {fastest:.3f})  {ratio:5.2f} x tea_jax")


if __name__ == "__main__":
  main()
