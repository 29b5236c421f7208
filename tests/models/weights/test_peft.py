"""PEFT's adapter folders in and out: names, blocks, scales, refusals, torch's logits with them."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from tea_jax.models import causal_lm
from tea_jax.models.lora import LoraConfig, merge_adapters
from tea_jax.models.weights import huggingface
from tea_jax.models.weights.huggingface_config import config_from_hf
from tea_jax.models.weights.load import load_policy
from tea_jax.models.weights.peft import load_adapters, save_adapters
from tests.models.adapters import CONFIG, LORA, params_of, random_adapters
from tests.models.families import FAMILIES, LENGTHS, hashed, tokens, write_folder


@pytest.mark.parametrize(
  "name, targets",
  [
    ("llama", ("query", "key", "value", "output", "gate", "up", "down")),
    ("qwen3", ("query", "value")),
    ("gpt2", ("query", "key", "value", "output", "up", "down")),
    ("gpt2", ("value",)),
  ],
)
def test_adapters_survive_pefts_files(name, targets, tmp_path):
  config = config_from_hf(FAMILIES[name])
  lora = LoraConfig(rank=3, alpha=12.0, targets=targets)
  adapters = random_adapters(config, lora)
  save_adapters(tmp_path, config, adapters, lora, base_model="some/model")
  again, options = load_adapters(tmp_path, config)
  assert options == lora
  jax.tree.map(np.testing.assert_array_equal, again, adapters)


def test_files_have_pefts_names_shapes_and_keys(tmp_path):
  save_adapters(tmp_path, CONFIG, random_adapters(CONFIG, LORA), LORA, base_model="some/model")
  tensors = safetensors.numpy.load_file(tmp_path / "adapter_model.safetensors")
  assert len(tensors) == 2 * 2 * 3
  stem = "base_model.model.model.layers.1.mlp.down_proj"
  assert tensors[f"{stem}.lora_A.weight"].shape == (3, 48)
  assert tensors[f"{stem}.lora_B.weight"].shape == (32, 3)
  options = json.loads((tmp_path / "adapter_config.json").read_text())
  assert options["peft_type"] == "LORA"
  assert (options["r"], options["lora_alpha"], options["bias"]) == (3, 12, "none")
  assert options["base_model_name_or_path"] == "some/model"
  assert options["target_modules"] == ["mlp.down_proj", "self_attn.q_proj", "self_attn.v_proj"]
  assert options["fan_in_fan_out"] is False
  assert options["rank_pattern"] == options["alpha_pattern"] == {}
  assert sorted(file.name for file in tmp_path.iterdir()) == [
    "adapter_config.json",
    "adapter_model.safetensors",
  ]


def test_fused_projection_becomes_one_adapter_of_the_summed_rank(tmp_path):
  config = config_from_hf(FAMILIES["gpt2"])
  lora = LoraConfig(rank=2, alpha=4.0, targets=("query", "value"))
  adapters, params = random_adapters(config, lora), params_of(config)
  save_adapters(tmp_path, config, adapters, lora)
  tensors = safetensors.numpy.load_file(tmp_path / "adapter_model.safetensors")
  stem = "base_model.model.transformer.h.0.attn.c_attn"
  a, b = tensors[f"{stem}.lora_A.weight"], tensors[f"{stem}.lora_B.weight"]
  assert (a.shape, b.shape) == ((6, 32), (96, 6))
  options = json.loads((tmp_path / "adapter_config.json").read_text())
  rank, alpha = options["rank_pattern"]["attn.c_attn"], options["alpha_pattern"]["attn.c_attn"]
  merged = merge_adapters(params, adapters, lora)["layers"]["attention"]
  change = np.concatenate(
    [
      merged[name]["kernel"][0] - params["layers"]["attention"][name]["kernel"][0]
      for name in ("query", "key", "value")
    ],
    axis=-1,
  )
  np.testing.assert_allclose(alpha / rank * (b @ a).T, change, atol=1e-6)


def foreign_adapter(folder, modules, **options):
  """An adapter as PEFT would write it: module -> rank."""
  tensors = {}
  for module, (rank, width, out) in modules.items():
    stem = f"base_model.model.{module}"
    tensors[f"{stem}.lora_A.weight"] = 0.2 * hashed(f"{stem}A", (rank, width))
    tensors[f"{stem}.lora_B.weight"] = 0.2 * hashed(f"{stem}B", (out, rank))
  folder.mkdir(exist_ok=True)
  safetensors.numpy.save_file(tensors, folder / "adapter_model.safetensors")
  written = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "bias": "none", **options}
  (folder / "adapter_config.json").write_text(json.dumps(written))
  return tensors


def test_patterns_and_untouched_layers_of_a_foreign_adapter_are_honoured(tmp_path):
  tensors = foreign_adapter(
    tmp_path,
    {
      "model.layers.0.self_attn.q_proj": (4, 32, 32),
      "model.layers.1.self_attn.q_proj": (2, 32, 32),
      "model.layers.1.mlp.up_proj": (4, 32, 48),
    },
    rank_pattern={"layers.1.self_attn.q_proj": 2},
    alpha_pattern={"layers.1.self_attn.q_proj": 10},
  )
  adapters, lora = load_adapters(tmp_path, CONFIG)
  assert (lora.rank, lora.alpha, lora.targets) == (4, 6.0, ("query", "up"))
  params = params_of(CONFIG)
  merged = merge_adapters(params, adapters, lora)

  def product(module):
    stem = f"base_model.model.model.layers.{module}"
    return (tensors[f"{stem}.lora_B.weight"] @ tensors[f"{stem}.lora_A.weight"]).T

  changes = jax.tree.map(lambda a, b: np.asarray(a - b), merged, params)["layers"]
  query, up = (changes[k][n]["kernel"] for k, n in (("attention", "query"), ("mlp", "up")))
  np.testing.assert_allclose(query[0], 6 / 4 * product("0.self_attn.q_proj"), atol=1e-6)
  np.testing.assert_allclose(query[1], 10 / 2 * product("1.self_attn.q_proj"), atol=1e-6)
  np.testing.assert_allclose(up[1], 6 / 4 * product("1.mlp.up_proj"), atol=1e-6)
  assert not up[0].any()


def test_foreign_adapter_on_a_fused_projection_is_split(tmp_path):
  config = config_from_hf(FAMILIES["gpt2"])
  tensors = foreign_adapter(tmp_path, {"transformer.h.1.attn.c_attn": (4, 32, 96)})
  adapters, lora = load_adapters(tmp_path, config)
  params = params_of(config)
  merged = merge_adapters(params, adapters, lora)["layers"]["attention"]
  stem = "base_model.model.transformer.h.1.attn.c_attn"
  product = tensors[f"{stem}.lora_B.weight"] @ tensors[f"{stem}.lora_A.weight"]
  for index, name in enumerate(("query", "key", "value")):
    change = merged[name]["kernel"] - params["layers"]["attention"][name]["kernel"]
    rows = product[32 * index : 32 * (index + 1)]
    np.testing.assert_allclose(change[1], 6 / 4 * rows.T, atol=1e-6)
    assert not np.asarray(change[0]).any()


def test_load_policy_merges_an_adapter(tmp_path):
  folder = write_folder(tmp_path / "model", FAMILIES["llama"])
  adapters = random_adapters(CONFIG, LORA)
  save_adapters(tmp_path / "adapter", CONFIG, adapters, LORA)
  merged = load_policy(folder, adapter=tmp_path / "adapter").params
  expected = merge_adapters(load_policy(folder).params, adapters, LORA)
  jax.tree.map(np.testing.assert_array_equal, merged, expected)


@pytest.mark.parametrize(
  "options, message",
  [
    ({"peft_type": "IA3"}, "peft_type='IA3' of the adapter .* is not supported; supported: LORA"),
    ({"use_dora": True}, "use_dora=True"),
    ({"bias": "all"}, "bias='all'"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save="),
  ],
)
def test_unsupported_adapter_options_are_refused_by_name(options, message, tmp_path):
  foreign_adapter(tmp_path, {"model.layers.0.self_attn.q_proj": (4, 32, 32)}, **options)
  with pytest.raises(ValueError, match=message):
    load_adapters(tmp_path, CONFIG)


@pytest.mark.parametrize(
  "modules, message",
  [
    ({"model.layers.9.self_attn.q_proj": (4, 32, 32)}, r"does not have here: model\.layers\.9"),
    ({"model.layers.0.self_attn.q_proj": (4, 32, 31)}, r"B \(31, 4\); expected .* \(32, 4\)"),
  ],
)
def test_adapter_of_another_model_is_refused_by_name(modules, message, tmp_path):
  foreign_adapter(tmp_path, modules)
  with pytest.raises(ValueError, match=message):
    load_adapters(tmp_path, CONFIG)


def test_folder_without_an_adapter_is_refused(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"no adapter_config\.json"):
    load_adapters(tmp_path, CONFIG)


@pytest.mark.parity
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_merged_logits_match_torch_with_the_saved_adapter_beside_each_module(name, tmp_path):
  """The file's matrices, run as PEFT runs them: module(x) + scale * B(A(x))."""
  torch = pytest.importorskip("torch")
  from tests.models.test_parity_families import torch_logits, torch_model

  folder = write_folder(tmp_path / "model", FAMILIES[name])
  config, _ = huggingface.read_config(folder)
  targets = ("query", "key", "value", "output", "up", "down")
  lora = LoraConfig(rank=3, alpha=5.0, targets=targets)
  adapters = random_adapters(config, lora)
  save_adapters(tmp_path / "adapter", config, adapters, lora)
  tensors = safetensors.numpy.load_file(tmp_path / "adapter" / "adapter_model.safetensors")
  model = torch_model(folder)
  for key in tensors:
    if key.endswith("lora_A.weight"):
      module = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
      a = torch.from_numpy(tensors[key])
      b = torch.from_numpy(tensors[key.replace("lora_A", "lora_B")])

      def beside(_, inputs, output, a=a, b=b):
        return output + lora.scale * (inputs[0] @ a.T @ b.T)

      model.get_submodule(module).register_forward_hook(beside)
  theirs = torch_logits(model, tokens(), LENGTHS)
  params = huggingface.load_params(folder, config, causal_lm.abstract_params(config))
  merged = merge_adapters(params, adapters, lora)
  hidden = causal_lm.hidden_states(config, merged, tokens())
  ours = np.asarray(causal_lm.logits(config, merged, hidden))
  plain = np.asarray(
    causal_lm.logits(config, params, causal_lm.hidden_states(config, params, tokens()))
  )
  assert np.abs(plain - ours).max() > 0.1
  for row, (logits, length) in enumerate(zip(theirs, LENGTHS)):
    np.testing.assert_allclose(ours[row, :length], logits, atol=2e-4, rtol=0)
