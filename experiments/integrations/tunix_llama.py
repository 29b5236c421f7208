"""Tunix's Llama from a Hugging Face folder and back; Tunix saves adapters only."""

from __future__ import annotations

import functools
import json
import pathlib
import shutil
from typing import Any

import jax
import numpy as np

WEIGHTS = "model.safetensors"


def load_llama(folder: str, mesh: Any = None) -> Any:
  """Tunix's Llama with the weights of a Hugging Face folder, in float32."""
  from tunix.models.llama3 import model as llama3
  from tunix.models.llama3 import params

  hf = json.loads((pathlib.Path(folder) / "config.json").read_text())
  theta = hf.get("rope_theta") or hf["rope_parameters"]["rope_theta"]
  heads = hf["num_attention_heads"]
  config = llama3.ModelConfig(
    num_layers=hf["num_hidden_layers"],
    vocab_size=hf["vocab_size"],
    embed_dim=hf["hidden_size"],
    hidden_dim=hf["intermediate_size"],
    num_heads=heads,
    head_dim=hf.get("head_dim") or hf["hidden_size"] // heads,
    num_kv_heads=hf["num_key_value_heads"],
    rope_theta=theta,
    norm_eps=hf["rms_norm_eps"],
    weight_tying=hf.get("tie_word_embeddings", False),
  )
  # Tunix 0.1.7 rotates every Llama by a theta of 1e6, whatever its config says.
  rotate = getattr(llama3.apply_rope, "func", llama3.apply_rope)
  llama3.apply_rope = functools.partial(rotate, rope_theta=theta)
  return params.create_model_from_safe_tensors(folder, config, mesh, dtype=jax.numpy.float32)


def save_llama(model: Any, base: str, folder: str) -> None:
  """Writes Tunix's Llama as a Hugging Face folder, with the tokenizer and config of its base."""
  from flax import nnx
  from safetensors.numpy import load_file, save_file
  from tunix.models.llama3.params import _get_key_and_transform_mapping
  from tunix.utils.torch_utils import torch_key_to_jax_key

  weights = {
    ".".join(map(str, path)): np.asarray(leaf[...])
    for path, leaf in nnx.to_flat_state(nnx.state(model))
  }
  mapping = _get_key_and_transform_mapping(model.config)
  tensors = {}
  for key, tensor in load_file(f"{base}/{WEIGHTS}").items():
    name, transform = torch_key_to_jax_key(mapping, key)
    value = weights[name]
    if transform is not None:  # always (1, 0), and then heads apart
      value = value.reshape(tensor.shape[::-1]).T
    tensors[key] = np.ascontiguousarray(value)
  pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
  for path in pathlib.Path(base).glob("*"):
    if path.is_file() and path.name != WEIGHTS:
      shutil.copy(path, folder)
  save_file(tensors, f"{folder}/{WEIGHTS}", metadata={"format": "pt"})
