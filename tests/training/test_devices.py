"""Several devices give the numbers of one; four CPU devices are forced in a process of its own."""

import sys

import numpy as np
import pytest

from tea_jax.runs.log import read_jsonl
from tea_jax.training.loop import train
from tests.training import tiny
from tests.training.forced_devices import run_on_four_devices


def config(folder, **mesh):
  return tiny.config(
    folder,
    steps=2,
    data={"prompts_per_step": 4},
    objective={"kl_coefficient": 0.1},
    optimizer={"micro_batch_rollouts": 16, "learning_rate": 1e-3},
    mesh=mesh,
  )


def run(folder, **mesh):
  return train(
    config(folder, **mesh),
    policy=tiny.policy(),
    splits=tiny.splits(),
    reward=tiny.reward,
    console=tiny.console(),
  )


def main(folder: str) -> None:
  import jax

  assert jax.device_count() == 4
  for name, mesh in {"data": {}, "mixed": {"data": 1, "fsdp": 2, "tensor": 2}}.items():
    result = run(f"{folder}/{name}", **mesh)
    leaves = jax.tree.leaves(result.policy.params)
    assert len(leaves[0].sharding.device_set) == 4
    np.savez(f"{folder}/{name}.npz", *(np.asarray(leaf) for leaf in leaves))


@pytest.mark.slow
def test_four_devices_match_one(tmp_path):
  import jax

  run_on_four_devices("tests.training.test_devices", tmp_path)
  one = run(tmp_path / "one")
  expected = jax.tree.leaves(one.policy.params)
  for name in ("data", "mixed"):
    with np.load(tmp_path / f"{name}.npz") as saved:
      for leaf, other in zip(expected, saved.values(), strict=True):
        np.testing.assert_allclose(other, leaf, atol=1e-5)
    for a, b in zip(read_jsonl(tmp_path / name / "metrics.jsonl"), one.metrics, strict=True):
      for key in ("policy_loss", "grad_norm", "kl", "reward/mean"):
        np.testing.assert_allclose(a[key], b[key], atol=1e-5, rtol=1e-5, err_msg=key)


if __name__ == "__main__":
  main(sys.argv[1])
