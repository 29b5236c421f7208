"""Model folders in and out: exact round trips, and errors that name what is wrong."""

from __future__ import annotations

import fnmatch
import json
import os

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from tea_jax.models import causal_lm
from tea_jax.models.sequence_classifier import abstract_classifier_params
from tea_jax.models.weights import huggingface
from tea_jax.models.weights.load import load_policy, load_sequence_classifier
from tea_jax.runtime import memory
from tests.models.families import FAMILIES, hf_tensors, write_folder

LLAMA = FAMILIES["llama"]
TIED = FAMILIES["qwen3"]


def load(folder):
  config, head = huggingface.read_config(folder)
  abstract = causal_lm.abstract_params if head == "causal_lm" else abstract_classifier_params
  return config, head, huggingface.load_params(folder, config, abstract(config), head=head)


def stored(folder):
  tensors = {}
  for file in sorted(folder.glob("*.safetensors")):
    tensors |= safetensors.numpy.load_file(file)
  return tensors


@pytest.mark.parametrize("name", list(FAMILIES))
def test_save_of_a_load_writes_the_same_tensors(name, tmp_path):
  source = write_folder(tmp_path / "source", FAMILIES[name])
  config, head, params = load(source)
  huggingface.save_pretrained(tmp_path / "saved", config, params, head=head)
  before, after = stored(source), stored(tmp_path / "saved")
  assert set(before) == set(after)
  for key in before:
    np.testing.assert_array_equal(before[key], after[key])
  assert huggingface.read_config(tmp_path / "saved") == (config, head)


def test_kernels_are_stored_in_by_out_and_stacked_over_layers(tmp_path):
  _, _, params = load(write_folder(tmp_path, LLAMA))
  kernel = hf_tensors(LLAMA)["model.layers.1.mlp.up_proj.weight"]
  np.testing.assert_array_equal(params["layers"]["mlp"]["up"]["kernel"][1], kernel.T)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_checkpoint_becomes_float32_and_back_without_loss(dtype, tmp_path):
  source = write_folder(tmp_path / "source", LLAMA, dtype=dtype)
  config, _, params = load(source)
  assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}
  rounded = hf_tensors(LLAMA)["lm_head.weight"].astype(
    ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float16
  )
  np.testing.assert_array_equal(params["lm_head"]["kernel"], rounded.astype(np.float32).T)
  huggingface.save_pretrained(tmp_path / "saved", config, params, dtype=dtype)
  before, after = stored(source), stored(tmp_path / "saved")
  assert all(np.array_equal(before[key], after[key]) for key in before)
  assert after["lm_head.weight"].dtype == rounded.dtype


def test_sharded_checkpoint_loads_and_saves_like_a_single_file(tmp_path):
  source = write_folder(tmp_path / "source", LLAMA, max_shard_bytes=20_000)
  assert len(list(source.glob("*.safetensors"))) > 2
  config, _, params = load(source)
  _, _, whole = load(write_folder(tmp_path / "whole", LLAMA))
  jax.tree.map(np.testing.assert_array_equal, params, whole)
  huggingface.save_pretrained(tmp_path / "saved", config, params, max_shard_bytes=30_000)
  _, _, again = load(tmp_path / "saved")
  jax.tree.map(np.testing.assert_array_equal, again, whole)
  index = json.loads((tmp_path / "saved" / "model.safetensors.index.json").read_text())
  assert set(index["weight_map"]) == set(hf_tensors(LLAMA))
  assert index["metadata"]["total_size"] == sum(x.nbytes for x in hf_tensors(LLAMA).values())


def test_missing_tensor_is_named(tmp_path):
  tensors = hf_tensors(LLAMA)
  del tensors["model.layers.1.self_attn.k_proj.weight"]
  with pytest.raises(ValueError, match=r"missing tensors: model\.layers\.1\.self_attn\.k_proj"):
    load(write_folder(tmp_path, LLAMA, tensors))


def test_missing_head_says_how_to_tie_it(tmp_path):
  tensors = hf_tensors(LLAMA)
  del tensors["lm_head.weight"]
  with pytest.raises(ValueError, match=r"lm_head\.weight.*tie_word_embeddings=true"):
    load(write_folder(tmp_path, LLAMA, tensors))


def test_extra_tensor_is_named(tmp_path):
  tensors = hf_tensors(LLAMA) | {"model.layers.2.mlp.up_proj.weight": np.zeros((2, 2))}
  with pytest.raises(ValueError, match=r"does not have: model\.layers\.2\.mlp\.up_proj\.weight"):
    load(write_folder(tmp_path, LLAMA, tensors))


def test_wrong_shape_is_named_with_both_shapes(tmp_path):
  tensors = hf_tensors(LLAMA)
  tensors["model.norm.weight"] = np.zeros(31, np.float32)
  with pytest.raises(ValueError, match=r"model\.norm\.weight \(31,\) instead of \(32,\)"):
    load(write_folder(tmp_path, LLAMA, tensors))


def test_tied_checkpoint_may_keep_a_copy_of_the_embedding(tmp_path):
  tensors = hf_tensors(TIED)
  tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
  _, _, params = load(write_folder(tmp_path, TIED, tensors))
  assert "lm_head" not in params


def test_tied_checkpoint_with_another_head_is_refused(tmp_path):
  tensors = hf_tensors(TIED)
  tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1
  with pytest.raises(ValueError, match=r"lm_head\.weight differs from model\.embed_tokens"):
    load(write_folder(tmp_path, TIED, tensors))


def test_bare_gpt2_checkpoint_with_its_mask_buffers_loads(tmp_path):
  tensors = hf_tensors(FAMILIES["gpt2"])
  bare = {name.removeprefix("transformer."): values for name, values in tensors.items()}
  bare["h.0.attn.bias"] = np.ones((1, 1, 4, 4), np.float32)
  _, _, params = load(write_folder(tmp_path / "bare", FAMILIES["gpt2"], bare))
  _, _, whole = load(write_folder(tmp_path / "whole", FAMILIES["gpt2"]))
  jax.tree.map(np.testing.assert_array_equal, params, whole)


@pytest.mark.parametrize("keep", [5, 200, -1])
def test_truncated_file_is_named(keep, tmp_path):
  file = write_folder(tmp_path, LLAMA) / "model.safetensors"
  file.write_bytes(file.read_bytes()[:keep])
  with pytest.raises(ValueError, match=r"model\.safetensors is truncated or damaged"):
    load(tmp_path)


def test_integer_tensor_is_refused_with_the_supported_dtypes(tmp_path):
  write_folder(tmp_path, LLAMA)
  tensors = safetensors.numpy.load_file(tmp_path / "model.safetensors")
  tensors["lm_head.weight"] = tensors["lm_head.weight"].astype(np.int8)
  safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
  with pytest.raises(ValueError, match=r"lm_head\.weight.*dtype I8; supported: F64, F32"):
    load(tmp_path)


def test_missing_shard_is_named(tmp_path):
  write_folder(tmp_path, LLAMA, max_shard_bytes=20_000)
  gone = sorted(tmp_path.glob("*.safetensors"))[1]
  gone.unlink()
  with pytest.raises(FileNotFoundError, match=gone.name):
    load(tmp_path)


def test_folder_without_weights_is_refused(tmp_path):
  (tmp_path / "config.json").write_text(json.dumps(LLAMA))
  with pytest.raises(FileNotFoundError, match=r"neither model\.safetensors nor"):
    load(tmp_path)


def test_folder_without_config_is_refused(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"no config\.json"):
    load(tmp_path)


def test_weights_larger_than_memory_are_refused_before_reading(tmp_path, monkeypatch):
  write_folder(tmp_path, LLAMA)
  monkeypatch.setattr(memory, "available_host_bytes", lambda: 1000)
  monkeypatch.setattr(huggingface.SafetensorsFolder, "read", None)
  with pytest.raises(MemoryError, match=r"need 0\.00 GB, but only 0\.00 GB of host memory"):
    load(tmp_path)


def test_available_memory_is_a_plausible_number():
  available = memory.available_host_bytes()
  assert available is None or 2**20 < available < 2**50


def test_save_replaces_a_model_folder_and_keeps_nothing_of_it(tmp_path):
  target = tmp_path / "model"
  config, _, params = load(write_folder(target, LLAMA, max_shard_bytes=20_000))
  huggingface.save_pretrained(target, config, params)
  files = {"model.safetensors", "config.json", "generation_config.json"}
  assert {file.name for file in target.iterdir()} == files
  assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_save_into_a_folder_with_other_things_is_refused(tmp_path):
  config, _, params = load(write_folder(tmp_path / "model", LLAMA))
  (tmp_path / "model" / "notes.txt").write_text("mine")
  with pytest.raises(FileExistsError, match=r"notes\.txt"):
    huggingface.save_pretrained(tmp_path / "model", config, params)
  assert (tmp_path / "model" / "notes.txt").read_text() == "mine"


def test_interrupted_save_leaves_the_old_folder_whole(tmp_path, monkeypatch):
  target = write_folder(tmp_path / "model", LLAMA)
  config, _, params = load(target)

  def fail(*_, **__):
    raise OSError("disk full")

  monkeypatch.setattr(huggingface, "_write_json", fail)
  with pytest.raises(OSError, match="disk full"):
    huggingface.save_pretrained(target, config, params)
  assert os.listdir(tmp_path) == ["model"]
  jax.tree.map(np.testing.assert_array_equal, load(target)[2], params)


def test_save_with_parameters_of_another_model_is_refused(tmp_path):
  config, _, params = load(write_folder(tmp_path, LLAMA))
  del params["lm_head"]
  with pytest.raises(ValueError, match=r"missing or extra: lm_head\.kernel"):
    huggingface.save_pretrained(tmp_path / "saved", config, params)


def test_save_in_an_unknown_dtype_is_refused(tmp_path):
  config, _, params = load(write_folder(tmp_path, LLAMA))
  with pytest.raises(ValueError, match="dtype='int8' is not supported; supported: bfloat16"):
    huggingface.save_pretrained(tmp_path / "saved", config, params, dtype="int8")


def test_policy_loads_without_a_tokenizer_and_knows_its_head(tmp_path):
  folder = write_folder(tmp_path / "causal", LLAMA)
  policy = load_policy(folder)
  assert policy.tokenizer is None
  assert policy.params["lm_head"]["kernel"].shape == (32, 97)
  with pytest.raises(ValueError, match="holds a causal lm, not a sequence classifier"):
    load_sequence_classifier(folder)
  policy.save_pretrained(tmp_path / "saved", dtype="bfloat16")
  halved = load_policy(tmp_path / "saved").params["final_norm"]["scale"]
  rounded = np.asarray(policy.params["final_norm"]["scale"]).astype(ml_dtypes.bfloat16)
  np.testing.assert_array_equal(halved, rounded.astype(np.float32))
  scorer = write_folder(tmp_path / "scorer", FAMILIES["llama_classifier"])
  with pytest.raises(ValueError, match="holds a sequence classifier, not a causal lm"):
    load_policy(scorer)
  model = load_sequence_classifier(scorer)
  model.save_pretrained(tmp_path / "again")
  assert huggingface.read_config(tmp_path / "again")[1] == "sequence_classifier"


def test_unknown_name_is_refused_with_what_is_possible():
  with pytest.raises(FileNotFoundError, match=r"neither a folder, a \.gguf file, a hub id"):
    load_policy("./no-such-folder")


def test_hub_id_is_fetched_without_second_copies_of_the_weights(tmp_path, monkeypatch):
  folder, asked = write_folder(tmp_path / "snapshot", LLAMA), {}

  def fetch(name, *, allow_patterns):
    asked.update(name=name, patterns=allow_patterns)
    return str(folder)

  monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
  assert load_policy("owner/model").config.vocab_size == 97
  assert asked["name"] == "owner/model"
  for name, wanted in (
    ("model-00001-of-00002.safetensors", True),
    ("model.safetensors.index.json", True),
    ("tokenizer.json", True),
    ("chat_template.jinja", True),
    ("consolidated.safetensors", False),
    ("pytorch_model.bin", False),
  ):
    assert any(fnmatch.fnmatch(name, pattern) for pattern in asked["patterns"]) == wanted, name


def test_hub_that_cannot_be_reached_is_named(monkeypatch):
  def fail(*_, **__):
    raise OSError("no route to host")

  monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
  with pytest.raises(FileNotFoundError, match=r"'owner/model'.*hub: no route to host"):
    load_policy("owner/model")


def test_master_weights_may_be_half_precision(tmp_path):
  folder = write_folder(tmp_path, LLAMA)
  params = load_policy(folder, param_dtype="bfloat16").params
  rounded = hf_tensors(LLAMA)["model.layers.1.mlp.up_proj.weight"].astype(ml_dtypes.bfloat16)
  np.testing.assert_array_equal(params["layers"]["mlp"]["up"]["kernel"][1], rounded.T)
  with pytest.raises(ValueError, match="param_dtype='int8' is not supported; supported: bfloat16"):
    load_policy(folder, param_dtype="int8")


def test_end_tokens_of_the_generation_config_are_used(tmp_path):
  folder = write_folder(tmp_path, LLAMA)
  (folder / "generation_config.json").write_text('{"eos_token_id": [7, 8]}')
  assert huggingface.read_config(folder)[0].eos_token_ids == (7, 8)


def test_loaded_parameters_may_be_donated_and_read_again(tmp_path):
  # JAX adopts the loader's buffers; donation must not write through them.
  folder = write_folder(tmp_path, LLAMA)
  _, _, params = load(folder)
  doubled = jax.jit(lambda tree: jax.tree.map(lambda x: 2 * x, tree), donate_argnums=0)(params)
  expected = hf_tensors(LLAMA)["model.norm.weight"]
  np.testing.assert_array_equal(doubled["final_norm"]["scale"], 2 * expected)
  np.testing.assert_array_equal(load(folder)[2]["final_norm"]["scale"], expected)
