"""Supervised runs on several devices give the numbers of one; four CPU devices are forced."""

import sys

import jax
import numpy as np
import pytest

from tea_jax.runs.groups import MeshConfig
from tea_jax.runs.log import read_jsonl
from tests.training import supervised_tiny
from tests.training.forced_devices import run_on_four_devices


def run(folder, objective: str, **mesh):
  changes = {
    "steps": 3,
    "objective": {"name": objective},
    "optimizer": {"learning_rate": 1e-3},
    "mesh": MeshConfig(**mesh),
  }
  return supervised_tiny.run(supervised_tiny.config(folder, **changes))


def main(folder: str) -> None:
  assert jax.device_count() == 4
  for name, mesh in {"data": {}, "mixed": {"data": 2, "fsdp": 2}}.items():
    for objective in ("pass_at_n", "hybrid"):
      result = run(f"{folder}/{name}-{objective}", objective, **mesh)
      leaves = jax.tree.leaves(result.policy.params)
      assert len(leaves[0].sharding.device_set) == 4
      np.savez(f"{folder}/{name}-{objective}.npz", *(np.asarray(leaf) for leaf in leaves))


@pytest.mark.slow
def test_four_devices_match_one(tmp_path):
  run_on_four_devices("tests.training.test_supervised_devices", tmp_path)
  for objective in ("pass_at_n", "hybrid"):
    one = run(tmp_path / f"one-{objective}", objective)
    expected = jax.tree.leaves(one.policy.params)
    for name in ("data", "mixed"):
      case = f"{name}-{objective}"
      with np.load(tmp_path / f"{case}.npz") as saved:
        for leaf, other in zip(expected, saved.values(), strict=True):
          np.testing.assert_allclose(other, leaf, atol=1e-5, err_msg=case)
      for a, b in zip(read_jsonl(tmp_path / case / "metrics.jsonl"), one.metrics, strict=True):
        for key in ("loss", "grad_norm", "nll_per_token"):
          np.testing.assert_allclose(a[key], b[key], atol=1e-5, rtol=1e-4, err_msg=f"{case} {key}")


if __name__ == "__main__":
  main(sys.argv[1])
