"""What one process knows, all learn; what one raises, all raise: two processes over loopback."""

import json
import os
import signal

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tea_jax.rewards import RewardError
from tea_jax.runtime import processes


class OwnError(Exception):
  pass


def main() -> None:
  processes.connect()
  own = jax.process_index()
  told = {"several": processes.several(), "first": processes.is_first()}
  told["exchange"] = processes.exchange({"from": own, "text": "x" * 300 * own})
  told["agree"] = processes.agree([0.1 + own, float("nan"), np.arange(2) + own])
  told["on_first"] = processes.on_first(lambda: f"of {own}")

  rows = NamedSharding(Mesh(np.array(jax.devices()), "data"), PartitionSpec("data"))
  spread = processes.put(np.arange(4.0), rows)
  told["spread"] = [spread.is_fully_addressable, processes.fetch(spread).tolist()]
  tree = processes.replicate({"a": np.arange(2)}, rows.mesh)
  keys = processes.put(jax.random.split(jax.random.key(3), 4), rows)
  told["keys"] = processes.fetch(jax.random.key_data(keys)).tolist()
  told["tree"] = [tree["a"].is_fully_addressable, processes.local(tree)["a"].tolist()]

  def outcome(work):
    try:
      work()
    except (Exception, KeyboardInterrupt) as error:
      return [type(error).__name__, str(error), getattr(error, "row", None)]

  def fail_in(process, error):
    with processes.together():
      if own == process:
        raise error
      if process == 1:
        processes.agree(1)  # the other one learns of it here

  def fail_first():
    raise FileNotFoundError("no such file")

  def stopped():
    with processes.stopping_together():
      processes.check_stop()
      if own == 1:
        os.kill(os.getpid(), signal.SIGTERM)
      with processes.stopping_together():  # what was asked for outside counts in here
        processes.check_stop()

  told["errors"] = [
    outcome(lambda: fail_in(0, RewardError("bad", name="r", row=3))),
    outcome(lambda: fail_in(1, ValueError("worse"))),
    outcome(lambda: fail_in(0, OwnError("mine"))),
    outcome(lambda: processes.on_first(fail_first)),
    outcome(lambda: processes.require_same({"seed": own}, "the config")),
    outcome(lambda: processes.require_same({"seed": 1}, "the config")),
    outcome(stopped),
  ]
  # A process that fails itself raises its very error, with the place that it came from.
  mine = ValueError("own")
  try:
    fail_in(1, mine)
  except ValueError as error:
    told["own error"] = error is mine
  processes.exchange()  # nobody leaves before
  print(json.dumps(told))


def test_two_processes_know_and_raise_the_same():
  from tests.training import several

  started = several.start("tests.runtime.test_processes", processes=2)
  first, second = (json.loads(text.splitlines()[-1]) for text in several.outputs(started))
  assert [first.pop("first"), second.pop("first")] == [True, False]
  assert [first.pop("own error"), second.pop("own error")] == [False, True]
  assert first["exchange"] == [{"from": 0, "text": ""}, {"from": 1, "text": "x" * 300}]
  assert repr(first["agree"]) == "[0.1, nan, [0, 1]]"
  assert first["on_first"] == "of 0"
  assert first["spread"] == [False, [0.0, 1.0, 2.0, 3.0]]
  assert first["keys"] == jax.random.key_data(jax.random.split(jax.random.key(3), 4)).tolist()
  assert first["tree"] == [False, [0, 1]]
  assert first["errors"] == [
    ["RewardError", "bad", 3],
    ["ValueError", "worse", None],
    ["OwnError", "mine", None],
    ["FileNotFoundError", "no such file", None],
    [
      "ValueError",
      "process 1 has another seed of the config than process 0 (1 instead of 0); start all of them "
      "with the same command, files and versions.",
      None,
    ],
    None,
    ["KeyboardInterrupt", "", None],
  ]
  assert repr(first) == repr(second)


def test_one_process_calls_plainly():
  own = object()
  assert processes.exchange(own) == [own]
  assert processes.agree(own) is own
  assert processes.on_first(lambda: own) is own
  assert processes.local({"a": own}) == {"a": own}
  assert processes.replicate({"a": own}, None) == {"a": own}
  handler = signal.getsignal(signal.SIGTERM)
  with processes.stopping_together(), processes.together():
    assert signal.getsignal(signal.SIGTERM) is handler
    processes.check_stop()
  with pytest.raises(OwnError), processes.together():
    raise OwnError


@pytest.mark.parametrize(
  "environment",
  [
    {},
    {"SLURM_STEP_NUM_TASKS": "1", "TPU_WORKER_HOSTNAMES": "localhost"},
    {"OMPI_MCA_orte_hnp_uri": "x", "OMPI_COMM_WORLD_SIZE": "1"},
  ],
)
def test_one_process_is_not_joined(monkeypatch, environment):
  monkeypatch.setattr(jax.distributed, "initialize", pytest.fail)
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  processes.connect("auto")
  processes.connect("never")


@pytest.mark.parametrize(
  ("environment", "expected"),
  [
    ({"SLURM_STEP_NUM_TASKS": "2"}, {}),
    ({"TPU_WORKER_HOSTNAMES": "a,b"}, {}),
    (
      {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"},
      {"num_processes": 2, "process_id": 1},
    ),
  ],
)
def test_a_launcher_s_processes_are_joined(monkeypatch, environment, expected):
  joined = []
  monkeypatch.setattr(jax.distributed, "initialize", lambda **options: joined.append(options))
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  processes.connect()
  assert joined == [expected]


@pytest.mark.parametrize(
  "environment",
  [
    {"SLURM_STEP_NUM_TASKS": "2"},
    {"JAX_COORDINATOR_ADDRESS": "a:1"},
    {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2"},
  ],
)
def test_what_runs_in_one_process_refuses_several(monkeypatch, environment):
  processes.require_one("this")
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  with pytest.raises(ValueError, match=r"this runs in one process, .* but several were started"):
    processes.require_one("this")
  monkeypatch.setenv("JAX_NUM_PROCESSES", "1")
  monkeypatch.delenv("SLURM_STEP_NUM_TASKS", raising=False)
  processes.require_one("this")


def test_what_cannot_be_joined_is_a_sentence(monkeypatch):
  with pytest.raises(ValueError, match=r"could not be joined .*JAX_COORDINATOR_ADDRESS"):
    processes.connect("always")
  monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost:1")
  monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
  with pytest.raises(ValueError, match="JAX_NUM_PROCESSES='two' must be a whole number"):
    processes.connect()


if __name__ == "__main__":
  main()
