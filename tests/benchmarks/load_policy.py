"""Time and peak memory of loading a policy: python -m tests.benchmarks.load_policy [NAME] [TIMES].

Each repetition is a fresh process; seconds are wall and processor time. The peak is the largest
resident size while loading, less what the imports took; `ratio` divides it by the bytes of the
float32 weights. The first line reads the GGUF, the second the float32 folder saved from it.
"""

from __future__ import annotations

import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

from tea_jax.models.weights import huggingface
from tea_jax.models.weights.load import SMOLLM2, load_policy

REPETITIONS = 5

_CHILD = """
import json, sys, threading, time
import jax, psutil
from tea_jax.models.weights.load import load_policy
import gguf.quants  # an import, not part of the load

jax.block_until_ready(jax.numpy.zeros(1) + 1)
process = psutil.Process()
before = peak = process.memory_info().rss
done = threading.Event()

def watch():
  global peak
  while not done.wait(0.002):
    peak = max(peak, process.memory_info().rss)

watcher = threading.Thread(target=watch)
watcher.start()
start, processor = time.perf_counter(), time.process_time()
policy = load_policy(sys.argv[1])
jax.block_until_ready(policy.params)
seconds = time.perf_counter() - start
processor = time.process_time() - processor
done.set()
watcher.join()
weights = sum(leaf.nbytes for leaf in jax.tree.leaves(policy.params))
result = {"seconds": seconds, "processor": processor, "peak": peak - before, "weights": weights}
print(json.dumps(result))
"""


def measure(name: str, repetitions: int) -> str:
  """Medians over fresh processes."""
  runs = []
  for _ in range(repetitions):
    command = [sys.executable, "-c", _CHILD, name]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    runs.append(json.loads(output.splitlines()[-1]))
  wall, processor = (
    statistics.median(run[key] for run in runs) for key in ("seconds", "processor")
  )
  peak, weights = max(run["peak"] for run in runs), runs[0]["weights"]
  memory = f"peak {peak / 2**20:.0f} MiB, ratio {peak / weights:.3f}"
  return f"{wall:.2f} s wall, {processor:.2f} s processor, {memory}"


def main() -> None:
  name = sys.argv[1] if len(sys.argv) > 1 else SMOLLM2
  repetitions = int(sys.argv[2]) if len(sys.argv) > 2 else REPETITIONS
  print(f"{name}: {measure(name, repetitions)}", flush=True)
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "saved"
    policy = load_policy(name)
    huggingface.save_pretrained(path, policy.config, policy.params, policy.tokenizer)
    del policy
    print(f"as a float32 folder: {measure(str(path), repetitions)}")


if __name__ == "__main__":
  main()
