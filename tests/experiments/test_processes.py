"""Two processes leave what one process with two devices does, and go on with it."""

import json
import os
import pathlib

import pytest

from tests.experiments import several as scripts
from tests.training import several

pytestmark = pytest.mark.slow

# What tells of the clock or of the process that wrote it.
CLOCKS = ("timings.jsonl", "log.txt")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """(folders, what each process said) of one process and of two, which ran at the same path."""
  folder = tmp_path_factory.mktemp("scripts")
  cache = os.environ.get("TEA_JAX_TEST_CACHE") or str(folder / "cache")
  shared = {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
  folders, said = [], []
  for processes in (1, 2):
    scripts.prepare(folder / "here")
    started = several.start(
      "tests.experiments.several",
      str(folder / "here"),
      processes=processes,
      devices=2 // processes,
      **shared,
    )
    said.append([json.loads(text.splitlines()[-1]) for text in several.outputs(started)])
    folders.append((folder / "here").rename(folder / f"of_{processes}"))
  return folders, said


def files(folder: pathlib.Path, part: str) -> dict[str, bytes]:
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for path in sorted((folder / part).rglob("*"))
    if path.is_file() and path.name not in CLOCKS and "checkpoints" not in path.parts
  }


@pytest.mark.parametrize("part", ["length", "last_word", "fails", "fails_late", "search", "tuned"])
def test_two_processes_leave_the_bytes_of_one_with_two_devices(runs, part):
  (one, two), _ = runs
  found = files(one, part), files(two, part)
  assert found[0].keys() == found[1].keys()
  assert [name for name in found[0] if found[0][name] != found[1][name]] == []
  expected = {
    "length": ["report.md", "records/base/part-00001.parquet", "records/base/spec.json"],
    "fails": ["records/base/part-00000.unscored.parquet", "records/base/part-00000.failed.jsonl"],
    "search": ["report.md", "results.json", "rollouts/part-00000.parquet"],
    "tuned": ["metrics.jsonl", "policy/model.safetensors"],
  }
  assert {f"{part}/{name}" for name in expected.get(part, ())} <= found[0].keys()


def test_the_first_process_speaks_and_all_end_alike(runs):
  _, ((one,), (first, second)) = runs
  for alone, leading, other in zip(one, first, second, strict=True):
    if alone["name"] != "judge":
      assert alone["code"] == leading["code"] == other["code"], leading
      assert alone["error"] == leading["error"] == other["error"]
    assert other["said"] == ""
    if alone["name"] in ("evaluate", "search"):
      assert alone["said"] == leading["said"]


def test_errors_of_one_process_are_one_sentence_of_all(runs):
  _, (_, said) = runs
  for process in said:
    errors = [each["error"] for each in process if each["code"]]
    told = ["raised OSError: no answer", "prompt 'w3 w4'", "missing' is neither", "in one process"]
    assert all(text in error for text, error in zip(told, errors, strict=True)), errors
    assert all(error.startswith("error: ") and error.count("\n") == 1 for error in errors)


def test_the_same_command_takes_what_is_stored(runs):
  (one, two), (_, (first, _)) = runs
  calls = [(folder / "calls_length").read_text() for folder in (one, two)]
  assert calls[0] == calls[1] == "0" * len(calls[0])  # the first process scores for all
  evaluations = 2
  assert calls[1].startswith("0" * evaluations)
  searches = [each["said"] for each in first if each["name"] == "search"]
  assert ["new rollouts" in text for text in searches] == [True, False]
  tuned = [each["said"] for each in first if each["name"] == "finetune"]
  assert ["going on from step 4" in text for text in tuned] == [False, True]


def test_a_reward_of_rows_is_called_by_each_process_on_its_share(runs):
  (one, two), _ = runs
  assert set((one / "calls_last_word").read_text()) == {"0"}
  assert set((two / "calls_last_word").read_text()) == {"0", "1"}
