import sys
import types

import pytest

from tea_jax.runs.groups import LoggingConfig
from tea_jax.runs.log import RunLog
from tea_jax.runs.loggers import make_loggers


def fake_package(monkeypatch, name):
  """A package whose `init` returns a run that writes down what it is told."""
  calls = []
  run = types.SimpleNamespace(
    log=lambda values, step: calls.append((step, values)), finish=lambda: calls.append("finish")
  )
  module = types.ModuleType(name)
  vars(module)["init"] = lambda **arguments: calls.append(arguments) or run
  monkeypatch.setitem(sys.modules, name, module)
  return calls


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_run_tells_its_numbers_its_config_and_its_end(monkeypatch, tmp_path, name):
  calls = fake_package(monkeypatch, name)
  (tmp_path / "config.yaml").write_text("steps: 3\n")
  log = RunLog(tmp_path, LoggingConfig(live=False, to=(name,), project="mine"), steps=3)
  log.step(0, {"reward/mean": 0.5, "validation/best": True, "note": "x"}, {"time/step": 2})
  log.close()
  opened, step, end = calls
  assert opened["project"] == "mine"
  assert opened["config"] == {"steps": 3}
  assert opened["resume"] == "allow"
  assert step == (0, {"reward/mean": 0.5, "validation/best": 1.0, "time/step": 2.0})
  assert end == "finish"


def test_a_folder_goes_on_with_its_own_run(monkeypatch, tmp_path):
  calls = fake_package(monkeypatch, "wandb")
  for folder in ("a", "a", "b"):
    make_loggers(["wandb"], tmp_path / folder)
  first, again, other = (call["id"] for call in calls)
  assert first == again != other


def test_several_loggers_are_told_the_same(monkeypatch, tmp_path):
  wandb, trackio = fake_package(monkeypatch, "wandb"), fake_package(monkeypatch, "trackio")
  for logger in make_loggers(["wandb", "trackio", "wandb"], tmp_path):
    logger.log(7, {"kl": 0.25})
  assert wandb[1:] == trackio[1:] == [(7, {"kl": 0.25})]


def test_a_missing_package_and_an_unknown_name_are_one_sentence(monkeypatch, tmp_path):
  monkeypatch.setitem(sys.modules, "wandb", None)
  with pytest.raises(ModuleNotFoundError, match=r"--logging.to wandb needs wandb.*tea-jax\[wandb"):
    make_loggers(["wandb"], tmp_path)
  with pytest.raises(ValueError, match="unknown logger 'mlflow'; there are tensorboard, wandb"):
    make_loggers(["mlflow"], tmp_path)  # pyright: ignore[reportArgumentType]
