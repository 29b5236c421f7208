"""Traces of chosen steps, and shares of a peak."""

import pytest

from tea_jax.runs.groups import LoggingConfig
from tests.training import tiny


def test_chosen_steps_are_traced_and_shares_of_the_peak_logged(tmp_path):
  logging = {"profile_steps": (2,), "peak_teraflops": 1e-3}
  seen = {}
  run = tmp_path / "run"
  tiny.run(
    tiny.config(run, steps=2, logging=logging),
    tiny.policy(),
    on_step=lambda step, record: seen.update(record),
  )
  (trace,) = run.glob("profile/**/perfetto_trace.json.gz")
  assert trace.stat().st_size > 100
  # Six operations a parameter and token against two.
  ratio = seen["utilization/update"] * seen["time/update"] / seen["time/rollout"]
  assert ratio == pytest.approx(3 * seen["utilization/rollout"])
  assert seen["utilization/rollout"] > 0


def test_the_first_step_of_new_shapes_compiles_and_later_ones_do_not(tmp_path):
  seconds = []
  config = tiny.config(tmp_path / "run", steps=3, sampling={"max_completion_length": 5}, logging={})
  tiny.run(config, tiny.policy(), on_step=lambda _, record: seconds.append(record["time/compile"]))
  assert seconds[0] > 10 * seconds[2]


def test_steps_are_counted_from_one():
  with pytest.raises(ValueError, match="counted from 1"):
    LoggingConfig(profile_steps=(0,))
