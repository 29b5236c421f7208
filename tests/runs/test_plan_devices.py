"""The plan of one device of four beside XLA's own, in a process that forces four CPU devices."""

import json
import pathlib
import sys

import pytest

from tests.benchmarks import plan_memory
from tests.training.forced_devices import run_on_four_devices

CELLS = ("data=4", "fsdp=4", "fsdp=4, none", "fsdp=4, lora", "tensor=2")


def main(folder: str) -> None:
  report = {}
  for cell in CELLS:
    config = plan_memory.run_config(plan_memory.CELLS[cell])
    estimate = plan_memory.plan(config, plan_memory.MODEL)
    planned = sum(estimate.always.values()) + sum(estimate.update.values())
    report[cell] = planned / plan_memory.update_bytes(config, plan_memory.MODEL)
  pathlib.Path(folder, "report.json").write_text(json.dumps(report))


@pytest.mark.slow
def test_a_device_of_four_is_planned_as_xla_plans_it(tmp_path):
  run_on_four_devices("tests.runs.test_plan_devices", tmp_path)
  report = json.loads((tmp_path / "report.json").read_text())
  assert report == pytest.approx(dict.fromkeys(CELLS, 1), abs=0.15)


if __name__ == "__main__":
  main(sys.argv[1])
