import dataclasses
import re

import jax
import pytest

from experiments import train
from tea_jax.advantages import AdvantageSpec
from tea_jax.models.causal_lm import init_params
from tea_jax.models.weights import huggingface
from tea_jax.models.weights.huggingface_config import config_from_hf
from tea_jax.runs.config import RunConfig, from_dict, to_dict
from tea_jax.runs.presets import PRESETS, get_preset
from tests.models.families import FAMILIES
from tests.training import tiny


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_resolves_and_survives_yaml(name):
  preset = get_preset(name)
  assert from_dict(RunConfig, to_dict(preset.config)) == preset.config
  for rule in preset.rules:
    dataclasses.replace(preset.config, advantage=AdvantageSpec.parse(rule)).advantage_rule()


def test_paper_main_setting_holds_what_the_paper_states():
  config = get_preset("paper-main").config
  assert (config.sampling.num_rollouts, config.steps) == (64, 450)
  assert (config.validation.every, config.validation.num_samples, config.validation.top) == (
    25,
    32,
    10,
  )
  assert (config.validation.num_prompts, config.evaluation.num_prompts) == (128, 250)
  assert config.evaluation.num_samples == 256


def test_unknown_preset_lists_those_that_exist():
  with pytest.raises(ValueError, match=r"'nope'.*quickstart"):
    get_preset("nope")


def _tiny_folder(path, family):
  """Random weights of the architecture, a few thousand of them, with a tokenizer."""
  small = {**FAMILIES[family], "vocab_size": len(tiny.WORDS), "eos_token_id": 0, "bos_token_id": 0}
  config = config_from_hf(small)
  params = init_params(config, jax.random.key(0))
  huggingface.save_pretrained(path, config, params, tiny.tokenizer())
  return path


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith("paper")])
def test_paper_presets_resolve_on_tiny_weights_of_their_architecture(name, tmp_path, capsys):
  folder = _tiny_folder(tmp_path / "model", "qwen3" if "qwen3" in name else "llama_rope_llama3")
  assert train.main(["--preset", name, "--dry-run", "--model.name", str(folder)]) == 0
  shown = capsys.readouterr().out
  assert re.search(r"objective\.kl_coefficient +0\.01", shown)
  for words in ("decode", "update", "at the peak"):
    assert words in shown
  # Frozen weights under adapters are their own reference.
  assert ("reference" in shown) == ("lora" not in name)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("name", "family"),
  [
    ("paper-main", "llama_rope_llama3"),
    ("paper-qwen3-4b", "qwen3"),
    ("paper-llama3-8b-lora", "llama_rope_llama3"),
  ],
)
def test_paper_presets_train_on_tiny_weights_of_their_architecture(name, family, tmp_path):
  flags = (
    f"--preset {name} --model.name {_tiny_folder(tmp_path / 'model', family)} --steps 2 "
    "--data.max-prompt-length 16 --sampling.num-rollouts 16 --reward.functions length "
    "--validation.every 1 --validation.num-prompts 2 --validation.num-samples 4 --validation.top 2 "
    "--optimizer.micro-batch-rollouts 8 --optimizer.warmup-steps 0"
  )
  options = ["--reward.options", '{"length": {"minimum": 3, "maximum": 5}}']
  assert train.main([*flags.split(), *tiny.flags(tmp_path), *options]) == 0
  assert (tmp_path / "run" / "policy" / "config.json").exists()
