"""experiments/oracle_alignment.py, end to end on small pools."""

import json

import pytest

from experiments import oracle_alignment
from tea_jax.advantages import grpo, tea
from tea_jax.studies.alignment.estimators import RULES
from tea_jax.studies.alignment.policy_study import policy_study
from tests.training import tiny


def run(tmp_path, *arguments) -> int:
  common = ["--pools", "gaussian", "beta", "--num-rollouts", "8", "16", "--num-seeds", "3"]
  small = ["--pool-size", "64", "--num-prompts", "4", "--budget", "32"]
  output = ["--output", str(tmp_path / "out"), "--no-figure"]
  return oracle_alignment.main([*common, *small, *output, *arguments])


def test_it_prints_tables_and_writes_the_report(tmp_path, capsys):
  rules = ["--rules", "tea", "tea:tail_fraction=0.5,budget=16", "grpo"]
  assert run(tmp_path, "--synthetic", *rules, "--compare", "tea") == 0
  printed = capsys.readouterr().out
  assert "gaussian" in printed
  assert "0.668" in printed  # published, TEA at 16
  stored = json.loads((tmp_path / "out" / "alignment.json").read_text())
  cells = {(c["pool"], c["num_rollouts"], c["rule"]) for c in stored["alignment"]}
  assert len(cells) == 2 * 2 * 3
  assert stored["settings"]["budget"] == 32
  assert "tea minus the best other rule" in (tmp_path / "out" / "report.md").read_text()


def test_settings_of_the_report_are_those_that_count(tmp_path):
  assert run(tmp_path, "--synthetic", "--rules", "tea", "grpo", "--compare", "tea") == 0
  settings = json.loads((tmp_path / "out" / "alignment.json").read_text())["settings"]
  assert settings["location_spread"] == 2.0
  assert "model" not in settings


def test_a_presets_policy_can_be_replaced_by_flags():
  flags = oracle_alignment.parse(["--preset", "paper-main", "--model.name", "a/folder"])
  assert flags.model.name == "a/folder"
  assert flags.data.prompts == "ultrafeedback"
  assert flags.sampling.max_completion_length == 512


def test_the_budget_of_the_study_reaches_the_rules_that_do_not_name_one():
  flags = oracle_alignment.Flags(rules=("tea", "tea:budget=16", "grpo"), budget=32)
  rules = oracle_alignment.build_rules(flags)
  assert rules["tea"].parameters["budget"] == 32
  assert rules["tea:budget=16"].parameters["budget"] == 16
  assert "budget" not in rules["grpo"].parameters


@pytest.mark.parametrize(
  "arguments, message",
  [
    ([], "say either --synthetic"),
    (["--preset", "nope"], "unknown preset 'nope'"),
    (["--synthetic", "--rules", "teaa"], "unknown advantage rule 'teaa'"),
    (["--synthetic", "--rules", "tea:budget=1"], "budget=1"),
    (["--synthetic", "--rules", "cat_majority"], "needs answers"),
  ],
)
def test_mistakes_are_one_clear_line(tmp_path, capsys, arguments, message):
  assert run(tmp_path, *arguments) == 2
  error = capsys.readouterr().err
  assert message in error
  assert error.count("\n") == 1


def test_every_default_rule_exists():
  assert set(oracle_alignment.build_rules(oracle_alignment.Flags())) == set(RULES)


@pytest.mark.slow
def test_real_policy_study_aligns_every_rule(tmp_path):
  options = {"num_rollouts": (8,), "num_seeds": 2, "budget": 32, "num_prompts": 3, "pool_size": 16}

  def study(memory_gb):
    said = []
    result = policy_study(
      tiny.config(tmp_path),
      {"tea": tea(budget=32), "grpo": grpo()},
      folder=tmp_path,
      policy=tiny.policy(),
      splits=tiny.splits(),
      reward=tiny.reward,
      memory_gb=memory_gb,
      say=said.append,
      **options,
    )
    return result, said[-1]

  together, said = study(6.0)
  assert "3 of 3 chunks" in said
  apart, said = study(1e-9)  # a pass for each seed and rule, a rollout at a time
  assert f"{2 * 2 * 3 * 16} of {2 * 2 * 3 * 16} chunks" in said
  for name in ("tea", "grpo"):
    assert len(together[8][name].cosines) == 2
    assert abs(together[8][name].mean) <= 1
    assert apart[8][name].cosines == pytest.approx(together[8][name].cosines, abs=1e-5)
  assert len(list((tmp_path / "pools").glob("*.npz"))) == 3
