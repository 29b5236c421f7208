"""Small configs of every supported family, and weights that need no random generator.

The weights are an integer hash of the tensor's name and position, so the golden logits hold on
every machine and numpy version.
"""

from __future__ import annotations

import hashlib
import json
import math
import pathlib
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from tea_jax.models.causal_lm import abstract_params
from tea_jax.models.sequence_classifier import abstract_classifier_params
from tea_jax.models.weights.huggingface_config import config_from_hf, head_from_hf
from tea_jax.models.weights.reader import stored_shape
from tea_jax.models.weights.safetensors_files import Stored, write_safetensors
from tea_jax.models.weights.tensor_map import huggingface_map

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"

_SMALL = {
  "vocab_size": 97,
  "hidden_size": 32,
  "intermediate_size": 48,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "max_position_embeddings": 256,
  "rms_norm_eps": 1e-5,
  "bos_token_id": 1,
  "eos_token_id": 2,
  "pad_token_id": 0,
}


def _family(model_type: str, class_name: str, **options: Any) -> dict[str, Any]:
  return {**_SMALL, "model_type": model_type, "architectures": [class_name], **options}


def _rope(theta: float, **options: Any) -> dict[str, Any]:
  return {"rope_parameters": {"rope_type": "default", "rope_theta": theta, **options}}


FAMILIES: dict[str, dict[str, Any]] = {
  "llama": _family("llama", "LlamaForCausalLM", tie_word_embeddings=False, **_rope(10000.0)),
  "llama_biased_tied": _family(
    "llama",
    "LlamaForCausalLM",
    tie_word_embeddings=True,
    attention_bias=True,
    mlp_bias=True,
    head_dim=12,
    rope_theta=100000.0,
  ),
  "llama_rope_llama3": _family(
    "llama",
    "LlamaForCausalLM",
    tie_word_embeddings=True,
    **_rope(
      500000.0,
      rope_type="llama3",
      factor=8.0,
      low_freq_factor=1.0,
      high_freq_factor=4.0,
      original_max_position_embeddings=32,
    ),
  ),
  "llama_rope_linear": _family(
    "llama", "LlamaForCausalLM", **_rope(10000.0, rope_type="linear", factor=4.0)
  ),
  "mistral_sliding": _family(
    "mistral", "MistralForCausalLM", sliding_window=9, head_dim=8, **_rope(10000.0)
  ),
  "qwen2": _family("qwen2", "Qwen2ForCausalLM", tie_word_embeddings=True, **_rope(1000000.0)),
  "qwen2_sliding": _family(
    "qwen2",
    "Qwen2ForCausalLM",
    tie_word_embeddings=False,
    use_sliding_window=True,
    sliding_window=7,
    max_window_layers=0,
    **_rope(1000000.0),
  ),
  "qwen3": _family(
    "qwen3", "Qwen3ForCausalLM", tie_word_embeddings=True, head_dim=16, **_rope(1000000.0)
  ),
  "gemma": _family(
    "gemma",
    "GemmaForCausalLM",
    hidden_act="gelu_pytorch_tanh",
    head_dim=16,
    num_key_value_heads=1,
    tie_word_embeddings=True,
    **_rope(10000.0),
  ),
  "gpt2": {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "vocab_size": 97,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_inner": None,
    "n_positions": 128,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": True,
  },
  "llama_classifier": _family(
    "llama",
    "LlamaForSequenceClassification",
    num_labels=1,
    id2label={"0": "LABEL_0"},
    label2id={"LABEL_0": 0},
    **_rope(10000.0),
  ),
  "qwen3_classifier": _family(
    "qwen3",
    "Qwen3ForSequenceClassification",
    num_labels=1,
    id2label={"0": "LABEL_0"},
    label2id={"LABEL_0": 0},
    head_dim=16,
    tie_word_embeddings=True,
    **_rope(1000000.0),
  ),
}
CAUSAL = [name for name in FAMILIES if "classifier" not in name]
CLASSIFIERS = [name for name in FAMILIES if "classifier" in name]

# Rows of several lengths; the longest exceeds the original context of the scaled rope (32) and the
# sliding windows. Padding repeats a valid id on purpose: masks must come from lengths.
LENGTHS = np.array([60, 1, 23])


def tokens() -> np.ndarray:
  """`[3, 60]` token ids, deterministic, right-padded with the id 3."""
  ids = (np.arange(3 * 60).reshape(3, 60) * 37 + 11) % 90 + 4
  return np.where(np.arange(60) < LENGTHS[:, None], ids, 3).astype(np.int32)


def hashed(name: str, shape: tuple[int, ...]) -> np.ndarray:
  """Values in [-1, 1), a pure integer function of name and position (splitmix64)."""
  seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
  with np.errstate(over="ignore"):
    x = np.arange(math.prod(shape), dtype=np.uint64) + np.uint64(seed)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x = x ^ (x >> np.uint64(31))
  unit = (x >> np.uint64(40)).astype(np.float64) / 2**23 - 1.0
  return unit.astype(np.float32).reshape(shape)


def hf_tensors(hf: dict[str, Any]) -> dict[str, np.ndarray]:
  """Weights of a checkpoint under Hugging Face's names."""
  config, head = config_from_hf(hf), head_from_hf(hf)
  abstract = abstract_params if head == "causal_lm" else abstract_classifier_params
  shapes = {path: leaf.shape for path, leaf in flatten_dict(abstract(config)).items()}
  tensors = {}
  for path, ref in huggingface_map(config, head=head).items():
    for layer in range(config.num_layers) if ref.stacked else [0]:
      name = ref.name.format(layer=layer)
      shape = stored_shape(ref, shapes[path])
      values = hashed(name, shape)
      if path[-1] == "scale":
        # Near the identity, which is 0 for Gemma's offset scales.
        values = 1.0 - np.float32(config.norm_offset) + 0.3 * values
      elif path[-1] == "bias":
        values = 0.3 * values
      else:
        values = values * np.float32(1.7 / math.sqrt(config.hidden_size))
      tensors[name] = values.astype(np.float32)
  return tensors


def write_folder(
  folder: pathlib.Path,
  hf: dict[str, Any],
  tensors: dict[str, np.ndarray] | None = None,
  *,
  dtype: str = "float32",
  max_shard_bytes: int = 10**9,
) -> pathlib.Path:
  """A checkpoint folder as Hugging Face would write it."""
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "config.json").write_text(json.dumps(hf))
  tensors = hf_tensors(hf) if tensors is None else tensors
  stored = {
    name: Stored(values.shape, dtype, lambda values=values: values)
    for name, values in tensors.items()
  }
  write_safetensors(folder, stored, max_shard_bytes=max_shard_bytes)
  return folder
