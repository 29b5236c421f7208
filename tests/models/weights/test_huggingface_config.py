"""`config.json` into a `ModelConfig` and back."""

from __future__ import annotations

import dataclasses

import pytest

from tea_jax.models.config import ModelConfig, RopeScaling
from tea_jax.models.weights.huggingface_config import config_from_hf, config_to_hf, head_from_hf
from tests.models.families import FAMILIES

LLAMA = FAMILIES["llama"]
SIZES = (
  "vocab_size",
  "hidden_size",
  "intermediate_size",
  "num_hidden_layers",
  "num_attention_heads",
  "num_key_value_heads",
  "max_position_embeddings",
  "n_embd",
  "n_layer",
  "n_head",
  "n_positions",
)
LLAMA3 = {
  "rope_type": "llama3",
  "factor": 8.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize("name", list(FAMILIES))
def test_config_survives_the_round_trip(name):
  config, head = config_from_hf(FAMILIES[name]), head_from_hf(FAMILIES[name])
  written = config_to_hf(config, head=head)
  assert config_from_hf(written) == config
  assert head_from_hf(written) == head
  assert written["architectures"] == FAMILIES[name]["architectures"]


@pytest.mark.parametrize("name", list(FAMILIES))
def test_written_config_means_the_same_to_transformers(name):
  transformers = pytest.importorskip("transformers")
  hf = FAMILIES[name]
  written = config_to_hf(config_from_hf(hf), head=head_from_hf(hf))
  kind = type(transformers.AutoConfig.for_model(hf["model_type"]))
  theirs, ours = kind.from_dict(dict(hf)).to_dict(), kind.from_dict(dict(written)).to_dict()
  for key in set(theirs) - {"torch_dtype", "dtype", "n_inner", "transformers_version"}:
    if "drop" in key or key == "max_window_layers" or key.startswith("summary"):
      continue
    assert ours[key] == theirs[key], key


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3", "gemma", "gpt2"])
def test_left_out_keys_take_the_defaults_of_transformers(model_type):
  transformers = pytest.importorskip("transformers")
  full = transformers.AutoConfig.for_model(model_type).to_dict()
  sizes = {key: full[key] for key in SIZES if key in full}
  assert config_from_hf({"model_type": model_type, **sizes}) == config_from_hf(full)


def test_rope_may_sit_at_the_top_or_under_rope_parameters():
  top = {**LLAMA, "rope_parameters": None, "rope_theta": 5e5, "rope_scaling": LLAMA3}
  nested = {**LLAMA, "rope_parameters": {**LLAMA3, "rope_theta": 5e5}}
  expected = RopeScaling("llama3", 8.0, 1.0, 4.0, 8192)
  assert config_from_hf(top) == config_from_hf(nested)
  assert config_from_hf(top).rope_scaling == expected
  assert config_from_hf(nested).rope_theta == 5e5


def test_old_rope_type_key_is_read():
  hf = {**LLAMA, "rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}}
  assert config_from_hf(hf).rope_scaling == RopeScaling("linear", 2.0)


def test_null_window_switches_mistrals_off():
  mistral = FAMILIES["mistral_sliding"]
  assert config_from_hf(mistral).sliding_window == 9
  assert config_from_hf({**mistral, "sliding_window": None}).sliding_window is None


def test_qwen_window_needs_its_switch():
  qwen = FAMILIES["qwen2_sliding"]
  assert config_from_hf(qwen).sliding_window == 7
  assert config_from_hf({**qwen, "use_sliding_window": False}).sliding_window is None


def test_several_end_tokens_are_kept():
  config = config_from_hf({**LLAMA, "eos_token_id": [2, 5]})
  assert config.eos_token_ids == (2, 5)
  assert config_to_hf(config)["eos_token_id"] == [2, 5]


def test_head_dim_may_differ_from_hidden_size_over_heads():
  assert config_from_hf({**LLAMA, "head_dim": 20}).head_dim == 20


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"model_type": "mamba"}, "model_type='mamba'.*supported: gemma, gpt2, llama"),
    ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type='yarn'.*supported: default, linear"),
    ({"rope_parameters": {"rope_type": "linear"}}, "lacks the key 'factor'"),
    ({"hidden_act": "relu"}, "activation 'relu'.*supported: gelu"),
    ({"hidden_size": None}, "lacks the key 'hidden_size'"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
    ({"quantization_config": {"bits": 4}}, "quantization_config="),
    ({"num_key_value_heads": 3}, "num_kv_heads=3 must divide num_heads=4"),
    ({"head_dim": 9}, "head_dim=9 must be even"),
    ({"num_hidden_layers": 0}, "num_hidden_layers=0"),
  ],
)
def test_unsupported_config_is_refused_by_name(changes, message):
  with pytest.raises(ValueError, match=message):
    config_from_hf({**LLAMA, **changes})


def test_window_on_some_layers_only_is_refused():
  hf = {**FAMILIES["qwen2_sliding"], "max_window_layers": 1}
  with pytest.raises(ValueError, match=r"some layers only \(max_window_layers=1 of 2"):
    config_from_hf(hf)


def test_unsupported_head_is_refused_by_name():
  with pytest.raises(ValueError, match=r"LlamaForTokenClassification.*supported"):
    head_from_hf({"architectures": ["LlamaForTokenClassification"]})


def test_classifier_with_two_labels_is_refused():
  with pytest.raises(ValueError, match="has 2 labels"):
    head_from_hf({"architectures": ["LlamaForSequenceClassification"]})


def test_unknown_architecture_cannot_be_written():
  config = dataclasses.replace(config_from_hf(LLAMA), architecture="Rwkv")
  assert isinstance(config, ModelConfig)
  with pytest.raises(ValueError, match=r"architecture='Rwkv'.*supported: GPT2, Gemma"):
    config_to_hf(config)
