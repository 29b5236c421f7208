"""A run that is killed again and again ends with the same bits as one that was left alone."""

import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

from tea_jax.training.loop import train
from tests.training import killable, tiny

ROOT = pathlib.Path(__file__).parents[2]
# Where each process dies: the stage, how often it has come by then, the longest delay into it.
DEATHS = [
  ("rollout", 2, 0.02),
  ("checkpoint", 2, 0.05),
  ("update", 3, 0.005),
  ("checkpoint", 1, 0.05),
  ("reward", 2, 0.001),
  ("validation", 2, 0.02),
  ("checkpoint", 1, 0.02),
]


def _run_until(folder, stage, count, delay, cache, options=()):
  """Starts the run, kills it `delay` seconds into the `count`-th `stage`; returns its exit code."""
  environment = {
    **os.environ,
    "PYTHONPATH": str(ROOT),
    "JAX_COMPILATION_CACHE_DIR": str(cache),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PLATFORMS": "cpu",
  }
  process = subprocess.Popen(
    [sys.executable, "-m", "tests.training.killable", str(folder), *options],
    cwd=ROOT,
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert process.stdout is not None
  seen = 0
  for line in process.stdout:
    seen += line.split()[0] == stage
    if seen == count:
      time.sleep(delay)
      process.send_signal(signal.SIGKILL)
      break
  _, errors = process.communicate()
  assert process.returncode in (0, -signal.SIGKILL), errors
  return process.returncode


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("asynchronous",)], ids=["", "saved in the background"])
def test_a_run_killed_at_random_points_ends_with_the_same_bits(tmp_path, options):
  seed = int(os.environ.get("TEA_JAX_KILL_SEED", time.time()))
  print(f"TEA_JAX_KILL_SEED={seed}")
  rng = random.Random(seed)
  whole = train(
    killable.config(tmp_path / "whole"),
    policy=tiny.policy(),
    splits=tiny.splits(),
    reward=tiny.reward,
    console=tiny.console(),
  )
  killed, cache = tmp_path / "killed", tmp_path / "cache"
  deaths = 0
  for stage, count, longest in DEATHS:
    code = _run_until(killed, stage, count, rng.uniform(0, longest), cache, options)
    deaths += code == -signal.SIGKILL
    if code == 0:
      break
  assert deaths >= 4
  assert _run_until(killed, "never", 1, 0.0, cache, options) == 0
  for name in (
    "metrics.jsonl",
    "rollouts/samples.jsonl",
    "policy/model.safetensors",
  ):
    assert (killed / name).read_bytes() == (whole.run_folder / name).read_bytes(), name
  assert not list((killed / "checkpoints").glob("*tmp*"))
  assert not (killed / "corrupt_checkpoints").exists()
