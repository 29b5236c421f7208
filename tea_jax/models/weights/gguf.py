"""GGUF checkpoints: a `ModelConfig` from the metadata, the parameter tree from the tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tea_jax.models.config import ModelConfig, RopeScaling
from tea_jax.models.layers import rotary_frequencies
from tea_jax.models.weights import reader
from tea_jax.models.weights.gguf_file import GgufFile
from tea_jax.models.weights.huggingface_config import config_from_hf
from tea_jax.models.weights.tensor_map import gguf_map

_ROPE_FACTORS = "rope_freqs.weight"
# llama.cpp's architecture names -> Hugging Face's.
_MODEL_TYPES = {
  "llama": "llama",
  "qwen2": "qwen2",
  "qwen3": "qwen3",
  "gemma": "gemma",
  "gpt2": "gpt2",
}


def config_from_gguf(file: GgufFile) -> ModelConfig:
  """The model's description from the metadata of a GGUF file.

  Raises:
    ValueError: for an unsupported architecture or rope scaling, or a missing key.
  """
  meta = file.metadata
  arch = meta.get("general.architecture")
  if arch not in _MODEL_TYPES:
    raise ValueError(
      f"{file.source} has the architecture {arch!r}, which is not supported; supported: "
      f"{', '.join(sorted(_MODEL_TYPES))}."
    )

  def get(key: str, *default: Any) -> Any:
    if f"{arch}.{key}" not in meta:
      if not default:
        raise ValueError(f"{file.source} lacks the metadata key {arch}.{key}.")
      return default[0]
    value = meta[f"{arch}.{key}"]
    if not _is_meant(key, value):
      raise ValueError(f"{file.source} has {arch}.{key}={value!r:.80}, which cannot be meant.")
    return value

  names = file.shapes()
  if "token_embd.weight" not in names:
    raise ValueError(f"{file.source} lacks the tensor token_embd.weight.")
  special = {key: meta.get(f"tokenizer.ggml.{key}_token_id") for key in ("bos", "eos", "eot")}
  for key, index in special.items():
    vocabulary = names["token_embd.weight"][0]
    if index is not None and not (isinstance(index, int) and 0 <= index < vocabulary):
      raise ValueError(
        f"{file.source} has tokenizer.ggml.{key}_token_id={index!r:.80}, which is beyond its "
        f"{vocabulary} embeddings."
      )
  ends = [special[key] for key in ("eos", "eot") if special[key] is not None]
  common = {
    "model_type": _MODEL_TYPES[arch],
    "vocab_size": names["token_embd.weight"][0],
    "tie_word_embeddings": "output.weight" not in names,
    "bos_token_id": special["bos"],
    "eos_token_id": list(dict.fromkeys(ends)) or None,
    "pad_token_id": meta.get("tokenizer.ggml.padding_token_id"),
  }
  hidden, heads = get("embedding_length"), get("attention.head_count")
  if arch == "gpt2":
    return _config(
      common
      | {
        "n_embd": hidden,
        "n_layer": get("block_count"),
        "n_head": heads,
        "n_inner": get("feed_forward_length"),
        "n_positions": get("context_length"),
        "layer_norm_epsilon": _shortest(get("attention.layer_norm_epsilon")),
      },
      file,
    )
  head_dim = get("attention.key_length", hidden // heads)
  if get("rope.dimension_count", head_dim) != head_dim:
    raise ValueError(
      f"{file.source} rotates {get('rope.dimension_count')} of {head_dim} dimensions of a head; "
      "supported: all of them."
    )
  bias = "blk.0.attn_q.bias" in names
  hf = common | {
    "hidden_size": hidden,
    "intermediate_size": get("feed_forward_length"),
    "num_hidden_layers": get("block_count"),
    "num_attention_heads": heads,
    "num_key_value_heads": get("attention.head_count_kv", heads),
    "head_dim": head_dim,
    "max_position_embeddings": get("context_length"),
    "rms_norm_eps": _shortest(get("attention.layer_norm_rms_epsilon")),
    "rope_theta": float(get("rope.freq_base", 10000.0)),
    "rope_scaling": _linear_scaling(get, file),
    "attention_bias": bias,
    "mlp_bias": "blk.0.ffn_up.bias" in names,
  }
  if arch == "llama" and get("attention.sliding_window", None):
    hf |= {"model_type": "mistral", "sliding_window": get("attention.sliding_window")}
  config = _config(hf, file)
  config = dataclasses.replace(config, output_bias="blk.0.attn_output.bias" in names)
  if _ROPE_FACTORS in names:
    config = dataclasses.replace(config, rope_scaling=_llama3_scaling(file, config))
  return config


def load_params(
  file: GgufFile,
  config: ModelConfig,
  abstract: Mapping[str, Any],
  *,
  dtype: Any = np.float32,
  shardings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
  """Reads and dequantises the parameter tree; see `reader.read_params`."""
  return reader.read_params(
    file, gguf_map(config), abstract, dtype=dtype, shardings=shardings, ignored=(_ROPE_FACTORS,)
  )


def _config(hf: Mapping[str, Any], file: GgufFile) -> ModelConfig:
  try:
    return config_from_hf(hf)
  except ValueError as error:
    raise ValueError(f"{file.source}: {error}") from error


def _is_meant(key: str, value: Any) -> bool:
  """Whether a value of the metadata has the type and range of its key."""
  name = key.rpartition(".")[2]
  if key == "rope.scaling.type":
    return isinstance(value, str)
  if isinstance(value, bool) or not isinstance(value, int | float):
    return False
  if "epsilon" in name or name in ("freq_base", "factor", "scale_linear"):
    return 0 < value < float("inf")
  return isinstance(value, int) and 0 <= value < (10_001 if name == "block_count" else 2**31)


def _linear_scaling(get: Callable[..., Any], file: GgufFile) -> dict[str, Any] | None:
  # llama.cpp wrote the factor of linear scaling under this key in 2023, and still reads it.
  legacy = get("rope.scale_linear", None)
  kind = get("rope.scaling.type", "none" if legacy is None else "linear")
  if kind == "none":
    return None
  if kind == "linear" and legacy is not None:
    return {"rope_type": "linear", "factor": float(get("rope.scaling.factor", legacy))}
  if kind == "linear":
    return {"rope_type": "linear", "factor": float(get("rope.scaling.factor"))}
  raise ValueError(
    f"{file.source} has the rope scaling {kind!r}, which is not supported; supported: none, "
    "linear, and the factors of Llama 3."
  )


def _llama3_scaling(file: GgufFile, config: ModelConfig) -> RopeScaling:
  """Llama 3's scaling from the factors that the converter stored in its place.

  The file holds only what the formula gives: the stretch is its maximum, the other constants are
  those of every Llama 3.x release, and the factors must come out again.
  """
  factors = file.read(_ROPE_FACTORS, (slice(None),))
  for original in (8192, config.max_positions):
    scaling = RopeScaling("llama3", float(factors.max()), original_max_positions=original)
    scaled = dataclasses.replace(config, rope_scaling=scaling)
    again = rotary_frequencies(config) / rotary_frequencies(scaled)
    if again.shape == factors.shape and np.allclose(again, factors, rtol=1e-4):
      return scaling
  raise ValueError(
    f"{file.source} has rope factors that are not Llama 3's; only those are supported."
  )


def _shortest(value: float) -> float:
  """A float32 in its shortest decimal form: 9.99999974e-06 was meant as 1e-05."""
  return float(str(np.float32(value)))
