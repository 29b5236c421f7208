"""A tiny run in several processes of this machine, or in one: `several.py FOLDER CASE`.

The environment says how many processes there are, as `processes.connect` reads it.
"""

from __future__ import annotations

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np

ROOT = pathlib.Path(__file__).parents[2]

# What a case changes of the run below.
CASES = {
  "all_weights": {"validation": {"every": 0}},
  "adapters": {"model": {"lora_rank": 2}},
  "shares": {"validation": {"every": 3}, "steps": 3, "data": {"prompts_per_step": 5}},
  "split": {"mesh": {"data": 1, "fsdp": 2}, "optimizer": {"micro_batch_rollouts": 8}},
  "copied": {"mesh": {"data": 2}, "optimizer": {"micro_batch_rollouts": 8}},
  "tracked": {
    "advantage": {"name": "cat_best_of_n", "quantile": "tracked"},
    "objective": {"kl_coefficient": 0.1, "kl_placement": "reward", "kl_estimator": "k1"},
  },
}


def start(
  module: str, *arguments: str, processes: int, devices: int = 1, **environment: str
) -> list[subprocess.Popen]:
  """Starts `python -m module arguments` in so many processes of so many devices each."""
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
  shared = {
    **{name: value for name, value in os.environ.items() if not name.startswith("JAX_")},
    "PYTHONPATH": str(ROOT),
    "JAX_PLATFORMS": "cpu",
    # Little optimised, for compiling is most of the time.
    "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} "
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
    **environment,
  }
  if processes > 1:
    shared |= {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": str(processes)}
  return [
    subprocess.Popen(
      [sys.executable, "-m", module, *arguments],
      cwd=ROOT,
      env={**shared, "JAX_PROCESS_ID": str(process)},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for process in range(processes)
  ]


def outputs(started: list[subprocess.Popen]) -> list[str]:
  """What each printed, after all of them ended well; an error shows what it said."""
  texts = []
  for process in started:
    output, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors
    texts.append(output)
  return texts


def run(folder: pathlib.Path, case: str, *, processes: int, devices: int, **environment: str):
  """Runs a case to its end."""
  module = "tests.training.several"
  return outputs(
    start(module, str(folder), case, processes=processes, devices=devices, **environment)
  )


def kill(
  started: list[subprocess.Popen],
  *,
  process: int,
  said: str,
  delay: float = 0.0,
) -> None:
  """Kills one process after it has said a line; the others a little later, as launchers do."""
  stdout = started[process].stdout
  assert stdout is not None
  for line in stdout:
    if line.strip() == said:
      break
  time.sleep(delay)
  started[process].kill()
  time.sleep(delay)
  for each in started:
    each.kill()
    each.communicate()


def main(folder: str, case: str) -> None:
  from tea_jax.runtime import processes

  processes.connect()
  import jax

  from tea_jax.rewards import row_wise
  from tests.training import tiny

  changes = {
    "steps": 6,
    "data": {"prompts_per_step": 4},
    "objective": {"kl_coefficient": 0.1},
    "validation": {"every": 2},
    "checkpoint": {"every": 2},
    **CASES[case],
  }

  def told(step, record):
    del record
    print("step", step, flush=True)
    here = f"process {jax.process_index()}, step {step}"
    if os.environ.get("TERMINATE") == here:
      os.kill(os.getpid(), signal.SIGTERM)
    if os.environ.get("FAIL") == here:
      raise OSError("the callback failed")

  def reward(prompts, completions):
    # Who scores, and how often by now.
    with open(f"{folder}/scored", "a+") as scored:
      scored.write(f"{jax.process_index()}\n")
      scored.seek(0)
      calls = len(scored.readlines())
    if os.environ.get("FAIL") == f"call {calls}":
      raise RuntimeError("no answer")
    scores = tiny.reward(prompts, completions)
    if os.environ.get("FAIL") == "prompt 4" and len(scores) > 16:  # of five, or in the last share
      scores[-6] = np.nan
    return scores

  if case == "shares":
    row_wise(reward)
  try:
    result = tiny.run(tiny.config(folder, **changes), tiny.policy(), on_step=told, reward=reward)
  except KeyboardInterrupt:
    print("stopped")
    return
  leaves = [processes.fetch(leaf) for leaf in jax.tree.leaves(result.policy.params)]
  if processes.is_first():
    np.savez(pathlib.Path(folder) / "parameters.npz", *leaves)
  assert len(result.metrics) == changes["steps"]


if __name__ == "__main__":
  main(*sys.argv[1:])
