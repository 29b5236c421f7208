"""What no accelerator was asked yet: decoding and one update, in under ten minutes of one GPU.

  python -m tests.benchmarks.accelerator --out accelerator.jsonl

- Decoding of SmolLM2-135M's and Llama-3.2-1B's shapes, random bfloat16 weights, 32 to 1024 rows of
  256 tokens (32 and 256 with graphs): plain, with the Pallas kernel, with the loop as one CUDA
  graph, and with both. Each way is a process of its own, so that one that crashes (a graph's second
  run did in XLA of 2025) takes no other with it. The bound is the time to read the weights and the
  written places of the caches at the speed at which a large array is copied here.
- The policy gradient of 16 rollouts of 1024 tokens, `attention` fused and default: difference to a
  float32 gradient, seconds, bytes.

Every answer is printed and appended to the file as a line of JSON as soon as it is there. Cases
that there is no time for are left out, and said. `--tiny` runs all of it on a CPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from typing import Any

GRAPHS = "--xla_gpu_enable_command_buffer=" + ",".join(
  ("FUSION", "CUBLAS", "CUBLASLT", "CUDNN", "CUSTOM_CALL", "CONDITIONAL", "DYNAMIC_SLICE_FUSION")
  + ("WHILE",)
)
# What is most worth knowing first.
WAYS = ("xla", "pallas", "update", "xla-graphs", "pallas-graphs")
REPEATS = 3


def main(arguments: list[str] | None = None) -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("accelerator.jsonl"))
  parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
  parser.add_argument("--seconds", type=float, default=560, help="for all of it")
  parser.add_argument("--tiny", action="store_true", help="small shapes, kernels interpreted")
  parser.add_argument("--here", action="store_true", help="in this process: a crash ends it")
  options = parser.parse_args(arguments)
  deadline = time.time() + options.seconds
  if options.here:
    for way in options.ways:
      measure(way, options.out, deadline, tiny=options.tiny)
    return
  for number, way in enumerate(options.ways):
    # A slow way leaves time for those after it.
    share = (deadline - time.time()) * 2 / (len(options.ways) - number + 1)
    command = [sys.executable, "-m", __spec__.name if __spec__ else "tests.benchmarks.accelerator"]
    command += ["--here", "--ways", way, "--out", str(options.out)]
    command += ["--seconds", str(share), *(["--tiny"] * options.tiny)]
    flags = os.environ.get("XLA_FLAGS", "") + (f" {GRAPHS}" if way.endswith("-graphs") else "")
    try:
      done = subprocess.run(
        command,
        env=os.environ | {"XLA_FLAGS": flags},
        stderr=subprocess.PIPE,
        text=True,
        timeout=max(1.0, share) + 30,  # of its last case
      )
      problem = None if done.returncode == 0 else f"exit {done.returncode}: {done.stderr[-1500:]}"
    except subprocess.TimeoutExpired:
      problem = "ran out of time"
    if problem is not None:
      report(options.out, {"way": way, "problem": problem})


def measure(way: str, out: pathlib.Path, deadline: float, *, tiny: bool) -> None:
  """Runs the cases of one way until the deadline and reports each."""
  import jax

  from tests.benchmarks.common import LLAMA_1B, SMOLLM2

  device = jax.devices()[0]
  report(out, {"way": way, "device": device.device_kind, "jax": jax.__version__})
  models, tokens = {"135M": SMOLLM2, "1B": LLAMA_1B}, 256
  rows = (32, 256) if way.endswith("-graphs") else (32, 64, 256, 1024)
  update = {"prompt": 128, "completion": 1024, "group": 16}
  if tiny:
    small = dataclasses.replace(
      SMOLLM2, vocab_size=128, hidden_size=48, intermediate_size=64, num_layers=1, head_dim=16
    )
    models, rows, tokens = {"tiny": small}, (4,), 8
    update = {"prompt": 8, "completion": 16, "group": 2}
  if way == "update":
    cases = [lambda: update_case(next(iter(models.values())), **update)]
  else:
    speed = copy_bandwidth(1 << (20 if tiny else 31))
    cases = [
      lambda name=name, count=count: (
        {"model": name}
        | decode_case(models[name], way.split("-")[0], count, tokens, speed, interpret=tiny)
      )
      for name in models
      for count in rows
    ]
  longest = 0.0
  for number, case in enumerate(cases):
    started = time.time()
    if started + longest > deadline:
      report(out, {"way": way, "problem": f"no time for {len(cases) - number} of its cases"})
      return
    report(out, {"way": way} | case() | {"seconds_in_all": time.time() - started})
    longest = max(longest, time.time() - started)


def decode_case(
  config: Any, kind: Any, rows: int, tokens: int, speed: float, *, interpret: bool
) -> dict[str, Any]:
  """Milliseconds of a decoding step of so many rollouts of one prompt, and their bound."""
  import jax
  import jax.numpy as jnp
  import numpy as np

  from tea_jax.models.decode_attention import decode_attention
  from tea_jax.rollout.decode_loop import DecodeProgram, compiled
  from tea_jax.rollout.sampling import SamplingConfig

  prompt, dtype = 8 if interpret else 128, jnp.dtype("bfloat16")
  attention = decode_attention(kind, config, interpret=interpret)
  program = DecodeProgram(config, dtype, "auto", SamplingConfig(), (), decode=attention)
  weights = _random_weights(config)
  start, advance = compiled(program)
  places = -(-tokens // attention.multiple) * attention.multiple
  lengths = jnp.asarray([prompt])
  times, drawn = [], []
  for _ in range(1 + REPEATS):  # the first compiles
    state, cache, uniforms = start(
      weights,
      weights,
      jnp.ones((1, prompt), jnp.int32),
      lengths,
      jax.random.key(1),
      jnp.arange(1),
      jnp.arange(rows),
      jnp.ones(rows, bool),
      rollouts=rows,
      length=places,
      places=places,
    )
    jax.block_until_ready(state)
    began = time.perf_counter()
    state = jax.block_until_ready(
      advance(weights, state, lengths, cache, uniforms, np.int32(tokens))
    )
    times.append(time.perf_counter() - began)
    drawn.append(np.asarray(state.tokens[:, :tokens]))
  step = statistics.median(times[1:]) / (tokens - 1)
  place = 2 * config.num_layers * config.num_kv_heads * config.head_dim * dtype.itemsize
  read = sum(leaf.nbytes for leaf in jax.tree.leaves(weights))

  def bound(mean_places: float) -> float:
    return 1e3 * (read + place * (prompt + rows * mean_places)) / speed

  return {
    "rows": rows,
    "ms_a_step": 1e3 * step,
    "ms_bound_written_places": bound(tokens / 2),
    "ms_bound_all_places": bound(places),
    "tokens_a_second": rows / step,
    "all_runs_drew_the_same": all(np.array_equal(drawn[0], other) for other in drawn),
    "seconds_to_compile": times[0] - statistics.median(times[1:]),
  }


@functools.lru_cache(maxsize=1)
def _random_weights(config: Any) -> Any:
  import jax
  import jax.numpy as jnp

  from tea_jax.models.causal_lm import init_params
  from tea_jax.models.decoding import decode_weights

  return decode_weights(config, init_params(config, jax.random.key(0)), jnp.bfloat16)


def update_case(config: Any, *, prompt: int, completion: int, group: int) -> dict[str, Any]:
  """The policy gradient with fused and with default attention, both against one in float32."""
  import jax
  import jax.numpy as jnp

  from tea_jax.models.causal_lm import init_params
  from tea_jax.models.policy import Policy
  from tests.benchmarks.attention import compiled_gradient, random_group
  from tests.benchmarks.common import seconds

  params = init_params(config, jax.random.key(0))
  rollouts, advantages = random_group(config, prompt=prompt, completion=completion, group=group)

  def gradient_with(attention: Any, dtype: Any) -> jax.stages.Compiled:
    policy = Policy(config, {}, compute_dtype=dtype, remat="full", attention=attention)
    return compiled_gradient(policy, params, rollouts, advantages)

  def flat(gradient: Any) -> jax.Array:
    return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(gradient)])

  with jax.default_matmul_precision("highest"):
    exact = flat(gradient_with("xla", "float32")(params))
  result: dict[str, Any] = {"rows": group, "tokens": completion}
  for attention in ("auto", "fused"):
    run = gradient_with(attention, "bfloat16")
    error = jnp.linalg.norm(flat(run(params)) - exact) / jnp.linalg.norm(exact)
    times = seconds({"jax": lambda run=run: jax.block_until_ready(run(params))}, REPEATS)["jax"]
    memory = run.memory_analysis()
    result[attention] = {
      "relative_error": float(error),
      "seconds": statistics.median(times.wall),
      "temporary_mib": memory.temp_size_in_bytes / 2**20,
    }
  return result


def copy_bandwidth(size: int) -> float:
  """Bytes a second, read and written, of a copy of so many bytes."""
  import jax
  import jax.numpy as jnp

  copy = jax.jit(lambda x: x + 1)
  x = jax.block_until_ready(copy(jnp.zeros(size, jnp.int8)))
  times = []
  for _ in range(5):
    began = time.perf_counter()
    jax.block_until_ready(copy(x))
    times.append(time.perf_counter() - began)
  return 2 * size / min(times)


def report(out: pathlib.Path, record: dict[str, Any]) -> None:
  line = json.dumps(record)
  print(line, flush=True)
  with out.open("a") as file:
    file.write(line + "\n")


if __name__ == "__main__":
  main()
