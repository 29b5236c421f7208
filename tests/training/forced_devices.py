"""Runs a test file's `main` in a process of its own, where the CPU counts as four devices."""

import os
import pathlib
import subprocess
import sys

from tea_jax.models.config import ModelConfig

ROOT = pathlib.Path(__file__).parents[2]
# Large enough that its matrix products, and not the rest, are what a device computes.
MODEL = ModelConfig(
  architecture="Llama",
  vocab_size=512,
  hidden_size=64,
  intermediate_size=192,
  num_layers=2,
  num_heads=4,
  num_kv_heads=2,
  head_dim=16,
  max_positions=64,
  eos_token_ids=(0,),
  pad_token_id=0,
  tie_embeddings=True,
)


def run_on_four_devices(module: str, folder: pathlib.Path) -> None:
  """`python -m module folder`; what it printed is the error if it fails."""
  environment = {
    **os.environ,
    "PYTHONPATH": str(ROOT),
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
  }
  done = subprocess.run(
    [sys.executable, "-m", module, str(folder)],
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
