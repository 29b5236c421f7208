"""Writes the families' checkpoints as GGUF, with the conventions of llama.cpp's converter."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from tests.models.families import hf_tensors

_LLAMA_NAMES = {
  "self_attn.q_proj": "attn_q",
  "self_attn.k_proj": "attn_k",
  "self_attn.v_proj": "attn_v",
  "self_attn.o_proj": "attn_output",
  "self_attn.q_norm": "attn_q_norm",
  "self_attn.k_norm": "attn_k_norm",
  "mlp.gate_proj": "ffn_gate",
  "mlp.up_proj": "ffn_up",
  "mlp.down_proj": "ffn_down",
  "input_layernorm": "attn_norm",
  "post_attention_layernorm": "ffn_norm",
}
_GPT2_NAMES = {
  "attn.c_attn": "attn_qkv",
  "attn.c_proj": "attn_output",
  "mlp.c_fc": "ffn_up",
  "mlp.c_proj": "ffn_down",
  "ln_1": "attn_norm",
  "ln_2": "ffn_norm",
}
_TOP = {
  "model.embed_tokens": "token_embd",
  "model.norm": "output_norm",
  "lm_head": "output",
  "transformer.wte": "token_embd",
  "transformer.wpe": "position_embd",
  "transformer.ln_f": "output_norm",
}


def gguf_name(name: str) -> str:
  stem, kind = name.rsplit(".", 1)
  if stem in _TOP:
    return f"{_TOP[stem]}.{kind}"
  _, _, layer, part = stem.split(".", 3)
  return f"blk.{layer}.{(_LLAMA_NAMES | _GPT2_NAMES)[part]}.{kind}"


def permuted(values: np.ndarray, heads: int) -> np.ndarray:
  """Halves of each head -> interleaved pairs, as the converter does for the llama family."""
  rows = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
  return rows.swapaxes(1, 2).reshape(values.shape)


def gguf_tensors(hf: dict[str, Any]) -> dict[str, np.ndarray]:
  """The family's weights under GGUF's names and layout."""
  tensors = {}
  for name, values in hf_tensors(hf).items():
    if hf["model_type"] == "llama" and "q_proj" in name:
      values = permuted(values, hf["num_attention_heads"])
    if hf["model_type"] == "llama" and "k_proj" in name:
      values = permuted(values, hf["num_key_value_heads"])
    if hf["model_type"] == "gemma" and name.endswith("norm.weight"):
      values = values + 1
    if hf["model_type"] == "gpt2" and (".c_" in name) and values.ndim == 2:
      values = values.T
    tensors[gguf_name(name)] = np.ascontiguousarray(values)
  return tensors


def metadata(hf: dict[str, Any]) -> dict[str, Any]:
  """Architecture keys of the header, without their prefix."""
  if hf["model_type"] == "gpt2":
    return {
      "context_length": hf["n_positions"],
      "embedding_length": hf["n_embd"],
      "feed_forward_length": 4 * hf["n_embd"],
      "block_count": hf["n_layer"],
      "attention.head_count": hf["n_head"],
      "attention.layer_norm_epsilon": hf["layer_norm_epsilon"],
    }
  rope = hf.get("rope_parameters", {"rope_theta": hf.get("rope_theta", 1e4)})
  keys = {
    "context_length": hf["max_position_embeddings"],
    "embedding_length": hf["hidden_size"],
    "feed_forward_length": hf["intermediate_size"],
    "block_count": hf["num_hidden_layers"],
    "attention.head_count": hf["num_attention_heads"],
    "attention.head_count_kv": hf["num_key_value_heads"],
    "attention.layer_norm_rms_epsilon": hf["rms_norm_eps"],
    "rope.freq_base": rope["rope_theta"],
  }
  if "head_dim" in hf:
    keys |= {"attention.key_length": hf["head_dim"], "rope.dimension_count": hf["head_dim"]}
  if rope.get("rope_type") == "linear":
    keys |= {"rope.scaling.type": "linear", "rope.scaling.factor": rope["factor"]}
  return keys


def write_gguf(
  file: pathlib.Path,
  hf: dict[str, Any],
  *,
  tensors: dict[str, np.ndarray] | None = None,
  quantization: str = "F32",
  changes: dict[str, Any] | None = None,
) -> pathlib.Path:
  """One `.gguf`; matrices whose rows a block divides are quantised."""
  import gguf

  arch = hf["model_type"]
  writer = gguf.GGUFWriter(file, arch)
  writer.add_string("general.name", "small")
  for key, value in (metadata(hf) | (changes or {})).items():
    if isinstance(value, str):
      writer.add_string(f"{arch}.{key}", value)
    elif isinstance(value, float):
      writer.add_float32(f"{arch}.{key}", value)
    else:
      writer.add_uint32(f"{arch}.{key}", value)
  for key, name in (("bos", "bos"), ("eos", "eos"), ("padding", "pad")):
    writer.add_uint32(f"tokenizer.ggml.{key}_token_id", hf[f"{name}_token_id"])
  kind = gguf.GGMLQuantizationType[quantization]
  for name, values in (gguf_tensors(hf) if tensors is None else tensors).items():
    if kind.name == "F32" or values.ndim == 1 or values.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
      writer.add_tensor(name, values)
    else:
      packed = gguf.quants.quantize(values, kind)
      writer.add_tensor(name, packed, raw_dtype=kind)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return file
