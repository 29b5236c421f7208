import dataclasses
import json

import pytest

from experiments import compare
from tea_jax.runs.presets import PRESETS
from tea_jax.studies.matched_runs import at_same_kl, train_matched
from tests.studies.test_matched_runs import preset, splits
from tests.training import tiny


def test_flags_override_the_preset():
  chosen, dry_run = compare.parse(
    ["--preset", "quickstart", "--rules", "tea:budget=64", "--seeds", "3", "4", "--steps", "7"]
    + ["--optimizer.learning-rate", "2e-5", "--dry-run"]
  )
  assert dry_run
  assert (chosen.rules, chosen.seeds, chosen.config.steps) == (("tea:budget=64",), (3, 4), 7)
  assert chosen.config.optimizer.learning_rate == 2e-5
  assert chosen.config.sampling == PRESETS["quickstart"].config.sampling


def test_unknown_preset_and_rule_end_with_one_sentence(capsys):
  assert compare.main(["--preset", "nope"]) == 2
  assert "unknown preset 'nope'" in capsys.readouterr().err
  assert compare.main(["--rules", "nope", "--dry-run"]) == 2
  assert "nope" in capsys.readouterr().err


@pytest.mark.slow
def test_report_holds_tables_figures_and_notes(tmp_path):
  pytest.importorskip("matplotlib")
  chosen = preset(tmp_path)
  chosen = dataclasses.replace(chosen, config=at_same_kl(chosen.config, 0.5))
  said: list[str] = []
  runs = train_matched(
    chosen, policy=tiny.policy(), splits=splits(), reward=tiny.reward, say=said.append
  )
  text = compare.report(runs, minutes=1.5).read_text()
  for expected in ("bo16", "tea", "grpo", "base", "training reward of the last 10 steps", "1.5"):
    assert expected in text
  assert "| within 10 % of 0.5 |" in text
  assert "steered to 0.5 nats a completion" in text
  assert any("[####################] 0:00 left" in line for line in said)
  results = json.loads((tmp_path / "results.json").read_text())
  assert results
  pictures = {path.name for path in tmp_path.glob("*.png")}
  assert pictures == {
    "frontier.png",
    "reward_distribution.png",
    "curves.png",
    "best_of_n_against_kl.png",
  }


def test_match_kl_steers_every_rule_to_one_kl():
  arguments = ["--preset", "quickstart", "--match-kl", "0.5", "--dry-run"]
  objective = compare.parse(arguments)[0].config.objective
  assert objective.kl_target == 0.5
  assert objective.kl_coefficient == PRESETS["quickstart"].config.objective.kl_coefficient
  chosen, _ = compare.parse([*arguments, "--objective.kl-coefficient", "0"])
  assert chosen.config.objective.kl_coefficient == 1.0
