import json
import types

import huggingface_hub
import pytest
import yaml

from experiments import publish
from tea_jax.runs.card import model_card
from tea_jax.runs.config import save_config
from tea_jax.runs.presets import get_preset

CONFIG = get_preset("quickstart").config


@pytest.fixture
def run(tmp_path):
  """A run folder with a finished policy and an evaluation beside it."""
  (tmp_path / "policy").mkdir()
  (tmp_path / "policy" / "config.json").write_text("{}")
  save_config(CONFIG, tmp_path / "config.yaml")
  interval = {"estimate": [1.0, 2.5], "low": [0.5, 2.0], "high": [1.5, 3.0]}
  results = {"budgets": [1, 128], "num_prompts": 16, "frontier": {"tea": interval}}
  (tmp_path / "results.json").write_text(json.dumps(results))
  return tmp_path


def test_the_card_is_written_and_nothing_is_uploaded_without_a_repository(run, monkeypatch):
  monkeypatch.setattr(huggingface_hub, "HfApi", lambda: pytest.fail("uploaded"))
  assert publish.main([str(run), "--evaluation", str(run)]) == 0
  card = (run / "policy" / "README.md").read_text()
  front = yaml.safe_load(card.split("---")[1])
  assert front["library_name"] == "transformers"
  assert "base_model" not in front  # a model that comes in a package is none of the hub's
  assert f"`{CONFIG.advantage_rule()!r}`" in card
  assert "| tea | 1.000 [0.500, 1.500] | 2.500 [2.000, 3.000] |" in card


def test_the_folder_with_its_card_is_uploaded(run, monkeypatch):
  calls = []
  hub = types.SimpleNamespace(
    create_repo=lambda repo, **options: calls.append((repo, options)),
    upload_folder=lambda repo_id, folder_path: (
      calls.append((repo_id, sorted(file.name for file in folder_path.iterdir())))
      or types.SimpleNamespace(commit_url="https://hub/commit")
    ),
  )
  monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
  assert publish.main([str(run), "--repo", "me/best-of-128", "--private"]) == 0
  assert calls == [
    ("me/best-of-128", {"private": True, "exist_ok": True}),
    ("me/best-of-128", ["README.md", "config.json"]),
  ]


def test_a_hub_model_is_named_as_the_base():
  config = get_preset("paper-main").config
  assert "base_model: meta-llama/Llama-3.2-1B-Instruct" in model_card(config)


def test_a_run_without_a_policy_is_one_line(tmp_path, capsys):
  assert publish.main([str(tmp_path)]) == 2
  assert "holds no finished policy" in capsys.readouterr().err
