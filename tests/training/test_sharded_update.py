"""What one device of four computes of an update; four CPU devices are forced in another process."""

import json
import pathlib
import sys

import numpy as np
import pytest

from tea_jax.models.causal_lm import init_params
from tea_jax.models.policy import Policy
from tea_jax.models.sharding import make_mesh, param_shardings
from tea_jax.rollout.sampling import SamplingConfig
from tea_jax.rollout.types import Rollouts
from tea_jax.runs.objective import ObjectiveConfig
from tea_jax.runs.optimizer import OptimizerConfig
from tea_jax.training.learner import make_learner, place
from tea_jax.training.update import Batch
from tests.training.forced_devices import MODEL, run_on_four_devices

ROLLOUTS, PROMPT, COMPLETION = 8, 8, 16
CASES = {
  "one": (8, 0, {}),
  "by length": (8, 16, {"data": 4}),
  "data": (8, 0, {"data": 4}),
  "fsdp": (8, 0, {"fsdp": 4}),
  "one prompt, one device": (1, 0, {}),
  "one prompt": (1, 0, {"data": 4}),
  "one group a micro-batch, one device": (8, 8, {}),
  "one group a micro-batch": (8, 8, {"data": 4}),
}


def batch_of(prompts: int) -> Batch:
  rng = np.random.default_rng(0)
  shape = (prompts, ROLLOUTS, COMPLETION)
  logprobs = rng.normal(-5, 0.1, shape).astype(np.float32)
  rollouts = Rollouts(
    rng.integers(1, 512, (prompts, PROMPT)).astype(np.int32),
    rng.integers(2, PROMPT + 1, prompts).astype(np.int32),
    rng.integers(1, 512, shape).astype(np.int32),
    rng.integers(1, COMPLETION + 1, shape[:2]).astype(np.int32),
    np.ones(shape[:2], bool),
    logprobs,
    logprobs,
  )
  advantages = rng.normal(size=shape[:2]).astype(np.float32)
  return Batch(rollouts, advantages, np.ones(shape[:2], bool), None, None)


def main(folder: str) -> None:
  import jax

  report = {}
  for name, (prompts, micro, axes) in CASES.items():
    devices = jax.devices()[: 4 if axes else 1]
    mesh = make_mesh(**axes, devices=devices) if axes else None
    params = init_params(MODEL, jax.random.key(0))
    policy = Policy(MODEL, {}, None, scan_layers=False)
    learner = make_learner(
      policy,
      sampler=SamplingConfig(max_completion_length=COMPLETION),
      objective=ObjectiveConfig(),
      optimizer=OptimizerConfig(
        name="sgd", micro_batch_rollouts=micro, length_buckets=4 if name == "by length" else 1
      ),
      prompt_length=PROMPT,
      mesh=mesh,
    )
    if mesh is not None:
      params = jax.device_put(params, param_shardings(params, MODEL, mesh))
    trainable, frozen = learner.start(params, jax.random.key(1))
    state = learner.init_optimizer(trainable)
    batch = place(batch_of(prompts), mesh)
    arguments = (trainable, state, frozen, batch, np.float32(1.0), np.float32(0))
    compiled = learner.update.lower(*arguments).compile()
    updated = learner.update(*arguments)
    np.savez(f"{folder}/{name}.npz", *map(np.asarray, jax.tree.leaves(updated.trainable)))
    report[name] = {
      "flops": compiled.cost_analysis()["flops"],
      "temporary": compiled.memory_analysis().temp_size_in_bytes,
    }
  pathlib.Path(folder, "report.json").write_text(json.dumps(report))


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
  folder = tmp_path_factory.mktemp("sharded")
  run_on_four_devices("tests.training.test_sharded_update", folder)
  return folder, json.loads((folder / "report.json").read_text())


PAIRS = [
  ("data", "one"),
  ("fsdp", "one"),
  ("by length", "one"),
  ("one prompt", "one prompt, one device"),
  ("one group a micro-batch", "one group a micro-batch, one device"),
]


@pytest.mark.slow
@pytest.mark.parametrize("name, alone", PAIRS)
def test_devices_compute_the_update_of_one(measured, name, alone):
  folder, _ = measured
  with np.load(folder / f"{name}.npz") as many, np.load(folder / f"{alone}.npz") as one:
    for key in one.files:
      np.testing.assert_allclose(many[key], one[key], atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["data", "fsdp"])
def test_a_device_of_four_computes_a_quarter(measured, name):
  _, report = measured
  assert report[name]["flops"] <= 1.05 / 4 * report["one"]["flops"]
  assert report[name]["temporary"] < report["one"]["temporary"]


if __name__ == "__main__":
  main(sys.argv[1])
