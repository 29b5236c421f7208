"""`experiments.search`: presets as a plan, and a whole run on a tiny model."""

import json

import pytest
import yaml

from experiments import search
from tea_jax.runs import build
from tests.scaling.servers import completions_server
from tests.training.tiny import policy

pytest.importorskip("pyarrow")


@pytest.fixture
def tiny_run(tmp_path, monkeypatch):
  (tmp_path / "prompts.jsonl").write_text(
    "".join(json.dumps({"prompt": f"w{i} w{i + 1}"}) + "\n" for i in range(6))
  )
  monkeypatch.setattr(build, "load_run_policy", lambda config: policy())
  arguments = ["--data.prompts", str(tmp_path / "prompts.jsonl"), "--data.num-test", "4"]
  arguments += ["--data.num-validation", "1", "--num-prompts", "2", "--budgets", "24"]
  arguments += ["--sampling.max-completion-length", "6", "--state-length", "2", "--no-figures"]
  return [*arguments, "--output", str(tmp_path / "out")], tmp_path / "out"


def test_run_writes_a_report_and_goes_on_without_new_rollouts(tiny_run, capsys):
  arguments, folder = tiny_run
  assert search.main([*arguments, "--methods", "scaling_law_search"]) == 0
  assert "new rollouts" in capsys.readouterr().out
  first = json.loads((folder / "results.json").read_text())
  assert search.main([*arguments, "--methods", "scaling_law_search"]) == 0
  assert "new rollouts" not in capsys.readouterr().out
  assert json.loads((folder / "results.json").read_text()) == first
  assert {row["method"] for row in first["rows"]} == {"best_of_n", "scaling_law_search"}


def test_rollouts_of_other_settings_are_not_taken(tiny_run, capsys):
  arguments, _ = tiny_run
  assert search.main([*arguments, "--methods", "best_of_n"]) == 0
  assert search.main([*arguments, "--methods", "best_of_n", "--seed", "1"]) == 2
  assert "seed: 0 -> 1" in capsys.readouterr().err


@pytest.mark.parametrize("preset", search.SEARCH_PRESETS)
def test_presets_say_their_plan(preset, capsys):
  assert search.main(["--preset", preset, "--dry-run"]) == 0
  plan = yaml.safe_load(capsys.readouterr().out)
  assert plan["schedules"][300] == {"samples": 35, "states": 4}


def test_unknown_preset_is_one_clear_line(capsys):
  assert search.main(["--preset", "quick"]) == 2
  assert "known: quickstart, quickstart-full, slg-paper" in capsys.readouterr().err


def test_a_server_generates_instead_of_the_policy(tiny_run):
  pytest.importorskip("httpx")
  pytest.importorskip("tenacity")
  arguments, folder = tiny_run
  with completions_server() as server:
    options = ["--server", server.url, "--data.no-chat", "--methods", "scaling_law_search"]
    assert search.main([*arguments, *options]) == 0
    prefixed = [body for body in server.requests if body["max_tokens"] == 4]
    assert prefixed
    assert len(prefixed) < len(server.requests)
  assert len(json.loads((folder / "results.json").read_text())["rows"]) == 2
