import dataclasses

import jax
import numpy as np
import pytest

from tea_jax.data import Prompt
from tea_jax.evaluation import sources
from tea_jax.runs.presets import Preset
from tea_jax.studies.matched_runs import BASE, run_config_of, train_matched
from tests.training import tiny


def preset(folder, **changes):
  config = tiny.config(folder, evaluation={"num_prompts": 3, "num_samples": 16}, **changes)
  return Preset("tiny", config, rules=("tea", "grpo"), seeds=(0, 1))


def splits():
  test = [Prompt(id=200 + i, text=f"w{i} w{i + 3}") for i in range(4)]
  return tiny.splits() | {"test": test}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  folder = tmp_path_factory.mktemp("compare")
  arguments = {"policy": tiny.policy(), "splits": splits(), "reward": tiny.reward}
  return preset(folder), arguments, train_matched(preset(folder), **arguments)


def test_every_rule_and_seed_is_evaluated_on_the_same_prompts(finished):
  _, _, runs = finished
  assert {name: len(group) for name, group in runs.records.items()} == {
    BASE: 1,
    "tea": 2,
    "grpo": 2,
  }
  for group in runs.records.values():
    for records in group:
      assert records.prompts == [p.text for p in splits()["test"][:3]]
      assert records.rewards.shape == (3, 16)


def test_runs_differ_in_their_rule_and_seed_only(finished):
  preset, _, _ = finished
  first, second = (run_config_of(preset, rule, 1) for rule in preset.rules)
  assert first.seed == second.seed == 1
  assert (first.sampling, first.data, first.optimizer) == (
    second.sampling,
    second.data,
    second.optimizer,
  )
  assert first.run_folder != second.run_folder
  assert (first.advantage.name, second.advantage.name) == ("tea", "grpo")


def test_first_rollouts_are_the_same_under_every_rule(finished):
  _, _, runs = finished
  rewards = [runs.metrics[rule][0][0]["reward/mean"] for rule in ("tea", "grpo")]
  assert rewards[0] == rewards[1]


def test_training_moved_the_policy(finished):
  _, _, runs = finished
  base = runs.records[BASE][0].rewards
  assert all(not np.array_equal(r.rewards, base) for g in ("tea", "grpo") for r in runs.records[g])


def test_running_again_trains_and_samples_nothing(finished, monkeypatch):
  preset, arguments, runs = finished
  monkeypatch.setattr(
    sources, "engine_sampler", lambda *a, **k: lambda indices: pytest.fail("sampled")
  )
  again = train_matched(preset, **arguments)
  for name, group in runs.records.items():
    for records, repeated in zip(group, again.records[name], strict=True):
      np.testing.assert_array_equal(records.rewards, repeated.rewards)
  assert again.metrics == runs.metrics


def test_another_base_model_is_refused_in_the_same_folder(finished):
  preset, arguments, _ = finished
  params = jax.tree.map(lambda leaf: leaf * 1.01, arguments["policy"].params)
  other = dataclasses.replace(arguments["policy"], params=params)
  with pytest.raises(ValueError, match=r"weights: '\w+' -> '\w+'"):
    train_matched(dataclasses.replace(preset, rules=("rloo",)), **arguments | {"policy": other})


def test_another_template_is_refused_in_the_same_folder(finished):
  preset, arguments, _ = finished
  data = dataclasses.replace(preset.config.data, system_prompt="be brief")
  changed = dataclasses.replace(preset.config, data=data)
  with pytest.raises(ValueError, match="be brief"):
    train_matched(dataclasses.replace(preset, config=changed, rules=("rloo",)), **arguments)


def test_folders_of_rules_can_be_named_on_a_command_line(tmp_path):
  rule = "tea:budget=64,tail_fraction=0.5"
  folder = run_config_of(Preset("x", tiny.config(tmp_path)), rule, 3).run_folder
  assert folder.endswith("tea_budget_64_tail_fraction_0.5-seed3")


def test_repeated_rules_are_refused(tmp_path):
  with pytest.raises(ValueError, match="each once"):
    train_matched(Preset("x", tiny.config(tmp_path), rules=("tea", "tea")))


def test_missing_held_out_prompts_are_named(tmp_path):
  arguments = {"policy": tiny.policy(), "reward": tiny.reward}
  with pytest.raises(ValueError, match=r"data\.num_test"):
    train_matched(preset(tmp_path), splits=tiny.splits() | {"test": []}, **arguments)
