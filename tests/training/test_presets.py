import dataclasses

import pytest

from tea_jax.training.config import RunConfig, from_dict, to_dict
from tea_jax.training.presets import PRESETS, get_preset, parse_rule


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_resolves_and_survives_yaml(name):
  preset = get_preset(name)
  assert from_dict(RunConfig, to_dict(preset.config)) == preset.config
  for rule in preset.rules:
    dataclasses.replace(preset.config, advantage=parse_rule(rule)).advantage_rule()


def test_paper_main_setting_holds_what_the_paper_states():
  config = get_preset("paper-main").config
  assert (config.sampling.num_rollouts, config.steps) == (64, 450)
  assert (config.selection.every, config.selection.num_samples, config.selection.top) == (
    25,
    32,
    10,
  )
  assert (config.selection.num_prompts, config.evaluation.num_prompts) == (128, 250)
  assert config.evaluation.num_samples == 256


def test_rule_text_sets_arguments():
  options = parse_rule("grpo:normalize=true,epsilon=1e-4")
  assert options.name == "grpo"
  assert options.arguments() == {"normalize": True, "epsilon": 1e-4}
  assert parse_rule("tea:budget=256").arguments() == {"budget": 256}
  assert parse_rule("bon_rl:coefficient=n-1").arguments() == {"coefficient": "n-1"}


@pytest.mark.parametrize(
  ("text", "message"),
  [("tea:budget", "not argument=value"), ("tea:budgte=3", "unknown argument 'budgte'")],
)
def test_malformed_rule_is_refused(text, message):
  with pytest.raises(ValueError, match=message):
    parse_rule(text)


def test_unknown_preset_lists_those_that_exist():
  with pytest.raises(ValueError, match=r"'nope'.*quickstart"):
    get_preset("nope")
