"""The script for the day of a GPU runs on a CPU in small, and outlives a part that does not."""

import json

import pytest

from tests.benchmarks import accelerator


def records(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_all_it_measures_is_there(tmp_path):
  out = tmp_path / "out.jsonl"
  accelerator.main(["--tiny", "--ways", "pallas-graphs", "--out", str(out)])  # of its own process
  accelerator.main(["--tiny", "--here", "--ways", "update", "--out", str(out)])
  device, decoded, _, update = records(out)
  assert device["device"] == "cpu"
  assert decoded["way"] == "pallas-graphs"
  assert decoded["all_runs_drew_the_same"]
  assert 0 < decoded["ms_bound_written_places"] < decoded["ms_bound_all_places"]
  assert decoded["tokens_a_second"] == pytest.approx(4e3 / decoded["ms_a_step"])
  for attention in ("auto", "fused"):
    assert 0 < update[attention]["relative_error"] < 0.02
    assert update[attention]["temporary_mib"] > 0


def test_a_way_that_fails_is_a_line_and_not_the_end(tmp_path, monkeypatch):
  out = tmp_path / "out.jsonl"
  monkeypatch.setattr(accelerator.sys, "executable", "/bin/false")
  accelerator.main(["--ways", "xla", "xla-graphs", "--out", str(out)])
  assert [(line["way"], line["problem"]) for line in records(out)] == [
    ("xla", "exit 1: "),
    ("xla-graphs", "exit 1: "),
  ]


def test_cases_without_time_are_said(tmp_path):
  out = tmp_path / "out.jsonl"
  accelerator.main(["--tiny", "--here", "--seconds", "0", "--ways", "update", "--out", str(out)])
  assert records(out)[-1] == {"way": "update", "problem": "no time for 1 of its cases"}
