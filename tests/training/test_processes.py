"""Several processes give the run of one with as many devices, and stop and go on together."""

import os
import pathlib
import random
import time

import numpy as np
import pytest

from tea_jax.runs.log import read_jsonl
from tests.training import several

# What a run leaves that does not tell of the clock or of its own path.
FILES = (
  "metrics.jsonl",
  "rollouts/samples.jsonl",
  "policy/model.safetensors",
  "policy/config.json",
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
  """Compilations that the runs of this file share."""
  folder = os.environ.get("TEA_JAX_TEST_CACHE") or str(tmp_path_factory.mktemp("cache"))
  return {
    "JAX_COMPILATION_CACHE_DIR": folder,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }


def assert_same(first: pathlib.Path, second: pathlib.Path, files=FILES) -> None:
  for name in files:
    assert (first / name).read_bytes() == (second / name).read_bytes(), name


def assert_close(first: pathlib.Path, second: pathlib.Path) -> None:
  """Sums over other numbers of devices may be added in another order."""
  with np.load(first / "parameters.npz") as one, np.load(second / "parameters.npz") as two:
    for name in one:
      np.testing.assert_allclose(two[name], one[name], atol=1e-4)
  lines = zip(*(read_jsonl(folder / "metrics.jsonl") for folder in (first, second)), strict=True)
  for one, two in lines:
    for name in ("reward/mean", "policy_loss", "grad_norm", "completions/mean_length"):
      np.testing.assert_allclose(two[name], one[name], rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, cache):
  """The folder of a run of one process with two devices that nobody stopped."""
  folder = tmp_path_factory.mktemp("whole")
  several.run(folder, "tracked", processes=1, devices=2, **cache)
  return folder


@pytest.mark.slow
@pytest.mark.parametrize("case", ["all_weights", "adapters", "split"])
def test_two_processes_leave_the_bytes_of_one_with_two_devices(tmp_path, cache, case):
  several.run(tmp_path / "one", case, processes=1, devices=2, **cache)
  several.run(tmp_path / "two", case, processes=2, devices=1, **cache)
  adapter = ("adapter/adapter_model.safetensors",) if case == "adapters" else ()
  assert_same(tmp_path / "one", tmp_path / "two", (*FILES, *adapter, "parameters.npz"))
  assert not list((tmp_path / "two").rglob("*.saving"))


@pytest.mark.slow
def test_a_reward_of_rows_is_called_by_each_process_on_its_share(tmp_path, cache):
  several.run(tmp_path / "one", "shares", processes=1, devices=2, **cache)
  several.run(tmp_path / "two", "shares", processes=2, devices=1, **cache)
  assert_same(tmp_path / "one", tmp_path / "two")
  calls = [(tmp_path / name / "scored").read_text().split() for name in ("one", "two")]
  assert set(calls[0]) == {"0"}
  assert sorted(calls[1]) == ["0"] * len(calls[0]) + ["1"] * len(calls[0])


@pytest.mark.slow
def test_a_share_that_cannot_be_scored_is_told_as_of_the_whole_batch(tmp_path, cache):
  started = several.start(
    "tests.training.several", str(tmp_path / "run"), "shares", processes=2, FAIL="prompt 4", **cache
  )
  for process in started:
    _, errors = process.communicate(timeout=400)
    assert process.returncode
    assert "prompt 4 " in errors
    assert "rollout 2" in errors
  assert (tmp_path / "run" / "rollouts" / "unscored_step_0.jsonl").is_file()


@pytest.mark.slow
def test_four_processes_give_the_numbers_of_one_with_four_devices(tmp_path, cache):
  several.run(tmp_path / "one", "all_weights", processes=1, devices=4, **cache)
  several.run(tmp_path / "four", "all_weights", processes=4, devices=1, **cache)
  assert_close(tmp_path / "one", tmp_path / "four")


@pytest.mark.slow
def test_processes_killed_at_random_points_end_with_the_same_bytes(tmp_path, cache, whole):
  seed = int(os.environ.get("TEA_JAX_KILL_SEED", time.time()))
  print(f"TEA_JAX_KILL_SEED={seed}")
  rng = random.Random(seed)
  for process, said in ((0, "step 1"), (1, "step 2"), (0, "step 3"), (1, "step 5")):
    started = start(tmp_path, cache)
    several.kill(started, process=process, said=said, delay=rng.uniform(0, 0.5))
  several.outputs(start(tmp_path, cache))
  assert_same(whole, tmp_path, (*FILES, "parameters.npz"))
  assert not list((tmp_path / "checkpoints").glob("*tmp*"))
  assert not (tmp_path / "corrupt_checkpoints").exists()


@pytest.mark.slow
@pytest.mark.parametrize("process", [0, 1])
def test_a_notice_to_one_process_stops_all_and_the_run_goes_on(tmp_path, cache, whole, process):
  said = several.outputs(start(tmp_path, cache, TERMINATE=f"process {process}, step 2"))
  assert all(text.endswith("step 2\nstopped\n") for text in said)
  assert len(read_jsonl(tmp_path / "metrics.jsonl")) == 3
  assert max(path.name for path in (tmp_path / "checkpoints").iterdir()) == "3"
  several.outputs(start(tmp_path, cache))
  assert_same(whole, tmp_path, (*FILES, "parameters.npz"))


@pytest.mark.slow
@pytest.mark.parametrize("fail", ["call 3", "process 1, step 2"])
def test_what_fails_in_one_process_fails_in_all_and_the_run_goes_on(tmp_path, cache, whole, fail):
  started = start(tmp_path, cache, FAIL=fail)
  errors = [process.communicate(timeout=400)[1] for process in started]
  said = "RewardError: reward 'reward' raised RuntimeError: no answer"
  for process, error in zip(started, errors, strict=True):
    assert process.returncode == 1
    assert (said if fail.startswith("call") else "OSError: the callback failed") in error
  several.outputs(start(tmp_path, cache))
  assert_same(whole, tmp_path, (*FILES, "parameters.npz"))
  assert set((tmp_path / "scored").read_text().split()) == {"0"}


@pytest.mark.slow
def test_a_run_goes_on_with_another_mesh_and_fewer_processes(tmp_path, cache):
  several.run(tmp_path / "whole", "copied", processes=1, devices=2, **cache)
  folder = tmp_path / "run"
  for case, stop in (("split", "process 0, step 1"), ("copied", "process 1, step 3")):
    said = several.run(folder, case, processes=2, devices=1, TERMINATE=stop, **cache)
    assert all(text.endswith("stopped\n") for text in said)
  several.run(folder, "copied", processes=1, devices=2, **cache)
  assert_close(tmp_path / "whole", folder)


def start(folder, cache, **environment):
  module = "tests.training.several"
  return several.start(module, str(folder), "tracked", processes=2, **cache, **environment)
