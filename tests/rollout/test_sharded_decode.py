"""What one device of four decodes; four CPU devices are forced in another process."""

import dataclasses
import json
import pathlib
import re
import sys

import numpy as np
import pytest

from tea_jax.models.causal_lm import init_params
from tea_jax.models.policy import Policy
from tea_jax.models.sharding import make_mesh, param_shardings
from tea_jax.rollout.engine import RolloutEngine
from tea_jax.rollout.sampling import SamplingConfig
from tests.training import forced_devices
from tests.training.forced_devices import run_on_four_devices

MODEL = dataclasses.replace(forced_devices.MODEL, num_heads=8, num_kv_heads=4)
PROMPTS, ROLLOUTS, LENGTH = 4, 8, 16
CASES = {
  "one": {},
  "data": {"data": 4},
  "fsdp": {"fsdp": 4},
  "data and fsdp": {"data": 2, "fsdp": 2},
  "tensor": {"tensor": 4},
  "kernel": {"data": 2, "tensor": 2},
}


def main(folder: str) -> None:
  import jax

  report = {}
  params = init_params(MODEL, jax.random.key(0))
  for name, axes in CASES.items():
    mesh = make_mesh(**axes) if axes else None
    own = params
    if mesh is not None:
      own = jax.device_put(params, param_shardings(params, MODEL, mesh))
    sampling = SamplingConfig(
      max_completion_length=LENGTH, decode_attention="pallas" if name == "kernel" else "xla"
    )
    engine = RolloutEngine(Policy(MODEL, {}), sampling, mesh=mesh, interpret=True)
    prompts = [[1 + i, 2, 3] for i in range(PROMPTS)]
    rollouts = engine.generate(own, prompts, key=jax.random.key(1), num_rollouts=ROLLOUTS)
    np.savez(f"{folder}/{name}.npz", **rollouts._asdict())
    filling, weights = engine.weights(own)
    start, advance = engine._compiled(PROMPTS * ROLLOUTS)
    lengths = np.full(PROMPTS, 3, np.int32)
    state, cache, uniforms = start(
      filling,
      weights,
      np.ones((PROMPTS, 16), np.int32),
      lengths,
      jax.random.key(0),
      np.arange(PROMPTS, dtype=np.int32),
      np.arange(ROLLOUTS, dtype=np.int32),
      np.ones(PROMPTS * ROLLOUTS, bool),
      rollouts=ROLLOUTS,
      length=LENGTH,
      places=LENGTH,
    )
    program = advance.lower(weights, state, lengths, cache, uniforms, np.int32(LENGTH)).compile()
    text = program.as_text()
    operations = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")
    report[name] = {
      "flops": program.cost_analysis()["flops"],
      "collectives": {op: len(re.findall(rf" {op}(?:-start)?\(", text)) for op in operations},
      "heads": state.cache[0].key.addressable_shards[0].data.shape[1],
      "kernels": sorted(weights["layers"][0]["attention"]),
    }
  pathlib.Path(folder, "report.json").write_text(json.dumps(report))


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
  folder = tmp_path_factory.mktemp("decode")
  run_on_four_devices("tests.rollout.test_sharded_decode", folder)
  return folder, json.loads((folder / "report.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if name != "one"])
def test_devices_draw_the_tokens_of_one(measured, name):
  folder, _ = measured
  with np.load(folder / f"{name}.npz") as many, np.load(folder / "one.npz") as one:
    np.testing.assert_array_equal(many["completion_tokens"], one["completion_tokens"])
    np.testing.assert_allclose(many["logprobs"], one["logprobs"], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["data", "fsdp", "data and fsdp"])
def test_a_device_of_four_decodes_a_quarter_and_says_only_when_it_is_done(measured, name):
  _, report = measured
  assert report[name]["flops"] <= 1.05 / 4 * report["one"]["flops"]
  talk = report[name]["collectives"]
  assert talk.pop("all-reduce") <= 2  # are all rows done: before the loop's first step, and after
  assert not any(talk.values())


@pytest.mark.slow
def test_the_kernel_stays_with_a_devices_own_rows_and_heads(measured):
  _, report = measured
  assert report["kernel"]["heads"] == 2
  assert report["kernel"]["flops"] <= 0.3 * report["one"]["flops"]
  gathers = report["kernel"]["collectives"]["all-gather"]
  assert gathers <= report["tensor"]["collectives"]["all-gather"]  # of activations, not of caches


@pytest.mark.slow
def test_devices_that_split_a_model_split_its_heads(measured):
  _, report = measured
  assert report["tensor"]["heads"] == 1
  assert "query_key_value" not in report["tensor"]["kernels"]
  assert "query_key_value" in report["fsdp"]["kernels"]
  assert report["tensor"]["flops"] <= 0.3 * report["one"]["flops"]


if __name__ == "__main__":
  main(sys.argv[1])
