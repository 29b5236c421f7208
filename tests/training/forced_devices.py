"""Runs a test file's `main` in a process of its own, where the CPU counts as four devices."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]


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
