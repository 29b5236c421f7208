"""Logs: what is written, what survives a kill, and the numbers by hand."""

import itertools
import json
import time

import numpy as np
import pytest

from tea_jax.runs.groups import LoggingConfig
from tea_jax.runs.log import JsonlLog, RunLog, read_jsonl
from tea_jax.training.metrics import completion_metrics, reward_metrics
from tests.training import tiny


def test_reopening_drops_what_came_after_the_checkpoint(tmp_path):
  path = tmp_path / "log.jsonl"
  log = JsonlLog(path)
  log.append({"a": 1})
  offset = log.offset
  log.append({"a": 2})
  log.close()
  log = JsonlLog(path, offset=offset)
  log.append({"a": 3})
  log.close()
  assert read_jsonl(path) == [{"a": 1}, {"a": 3}]


def test_a_shorter_file_than_the_checkpoint_knew_is_refused(tmp_path):
  (tmp_path / "log.jsonl").write_text("{}\n")
  with pytest.raises(ValueError, match=r"has 3 bytes, but .* it had 10"):
    JsonlLog(tmp_path / "log.jsonl", offset=10)


def test_a_line_cut_by_a_kill_is_left_out(tmp_path):
  (tmp_path / "log.jsonl").write_text('{"a": 1}\n{"a": ')
  assert read_jsonl(tmp_path / "log.jsonl") == [{"a": 1}]


def test_json_has_neither_nan_nor_infinity(tmp_path):
  log = JsonlLog(tmp_path / "log.jsonl")
  log.append({"a": np.nan, "b": [np.inf, np.float32(0.5)], "c": np.int32(3), "d": "x", "e": True})
  assert json.loads((tmp_path / "log.jsonl").read_text()) == {
    "a": None,
    "b": [None, 0.5],
    "c": 3,
    "d": "x",
    "e": True,
  }


def test_metrics_and_timings_go_to_different_files(tmp_path):
  log = RunLog(tmp_path, LoggingConfig(live=False), steps=1, console=tiny.console())
  log.step(0, {"reward/mean": 0.5}, {"time/step": 1.0})
  log.close()
  assert read_jsonl(tmp_path / "metrics.jsonl") == [{"step": 0, "reward/mean": 0.5}]
  assert read_jsonl(tmp_path / "timings.jsonl") == [{"step": 0, "time/step": 1.0}]


def test_a_terminal_shows_one_line_a_step(tmp_path):
  console = tiny.console()
  log = RunLog(tmp_path, LoggingConfig(), steps=3, console=console)
  log.step(1, {"reward/mean": 0.51234, "grad_norm": 2.0}, {"time/step": 1.5})
  log.close()
  line = console.file.getvalue().strip()
  assert line.startswith("step 2/3  [#############-------] ")
  assert line.endswith(" left  reward 0.5123  grad norm 2  step s 1.5")


def test_the_first_step_of_a_process_tells_that_it_compiles_and_how_long_it_took(tmp_path):
  console = tiny.console()
  log = RunLog(tmp_path, LoggingConfig(), steps=3, first_step=1, console=console)
  log.starting()
  log.step(1, {}, {"time/step": 9.0, "time/compile": 7.5})
  log.step(2, {}, {"time/step": 1.5, "time/compile": 0.01})
  log.close()
  begins, first, second = console.file.getvalue().splitlines()
  assert begins.startswith("step 2: compiling")
  assert first.endswith("step s 9  of it compiling 7.5")
  assert second.endswith("step s 1.5")
  assert [line["time/compile"] for line in read_jsonl(tmp_path / "timings.jsonl")] == [7.5, 0.01]


def test_a_finished_run_compiles_nothing_and_says_nothing_of_it(tmp_path):
  console = tiny.console()
  log = RunLog(tmp_path, LoggingConfig(), steps=3, first_step=3, console=console)
  log.starting()
  log.close()
  assert console.file.getvalue() == ""


def test_a_live_table_shows_the_last_steps(tmp_path):
  console = tiny.console()
  console._force_terminal = True
  log = RunLog(tmp_path, LoggingConfig(live=True), steps=3, console=console)
  log.step(0, {"reward/mean": 0.5}, {"time/step": 1.5})
  log.close()
  assert "reward" in console.file.getvalue()


def test_tensorboard_gets_the_scalars(tmp_path):
  pytest.importorskip("tensorboardX")
  options = LoggingConfig(live=False, to=("tensorboard",))
  log = RunLog(tmp_path, options, steps=1, console=tiny.console())
  log.step(0, {"reward/mean": 0.5}, {})
  log.close()
  assert list((tmp_path / "tensorboard").glob("events*"))


def test_best_of_n_is_the_mean_over_all_subsets():
  rewards = np.array([[0.3, -1.0, 2.0, 2.0], [0.0, 1.0, 5.0, 4.0]])
  metrics = reward_metrics(rewards)
  for size in (1, 2, 4):
    subsets = [[max(s) for s in itertools.combinations(row, size)] for row in rewards]
    np.testing.assert_allclose(metrics[f"best_of_n/{size}"], np.mean(subsets))
  assert "best_of_n/3" not in metrics


def test_tensorboard_holds_every_step_while_the_run_goes_on(tmp_path):
  pytest.importorskip("tensorboardX")
  log = RunLog(tmp_path, LoggingConfig(live=False, to=("tensorboard",)), steps=2)
  size = 0
  for step in range(2):
    log.step(step, {"reward/mean": float(step)}, {})
    before, deadline = size, time.monotonic() + 120
    while size == before and time.monotonic() < deadline:
      time.sleep(0.01)
      size = sum(file.stat().st_size for file in (tmp_path / "tensorboard").iterdir())
    assert size > before, "a kill may come at any time"
  log.close()


def test_reward_metrics_by_hand():
  rewards = np.array([[1.0, 1.0], [0.0, 4.0], [7.0, 100.0]])
  scored = np.array([[True, True], [True, True], [True, False]])
  metrics = reward_metrics(rewards, scored)
  assert metrics["reward/mean"] == np.mean([1, 1, 0, 4, 7])
  assert metrics["reward/max"] == 7.0
  assert metrics["reward/scored_frac"] == 5 / 6
  assert metrics["frac_reward_zero_std"] == 2 / 3
  assert metrics["best_of_n/2"] == np.mean([1.0, 4.0])
  assert reward_metrics(rewards, np.zeros_like(scored)) == {"reward/scored_frac": 0.0}


def test_completion_metrics_by_hand():
  metrics = completion_metrics(np.array([[2, 5], [5, 4]]), np.array([[True, False], [False, True]]))
  assert metrics["completions/mean_length"] == 4.0
  assert metrics["completions/terminated_length"] == 3.0
  assert metrics["completions/clipped_ratio"] == 0.5
  assert metrics["completions/live_frac"] == 16 / (4 * 5)
  assert metrics["num_tokens"] == 16
