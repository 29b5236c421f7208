"""What reward models take of a device: those that the flags name, from their config alone."""

from __future__ import annotations

import json
import math
import pathlib
from typing import Any

import jax.numpy as jnp
from jax.sharding import AbstractMesh

from tea_jax.models.config import ModelConfig
from tea_jax.models.sequence_classifier import abstract_classifier_params
from tea_jax.models.weights import huggingface
from tea_jax.runs.plan_layout import tree_bytes
from tea_jax.runs.reward import RewardConfig, is_model


def reward_models(reward: RewardConfig) -> dict[str, dict[str, Any]]:
  """Folder or hub id -> options of every reward that is a model."""
  options = json.loads(reward.options)
  found = {}
  for name in reward.functions:
    own = options.get(name, {})
    if is_model(name):
      found[name] = own
    elif name == "model" and "name_or_path" in own:
      found[own["name_or_path"]] = own
  return found


def reward_bytes(
  reward: RewardConfig, mesh: AbstractMesh, *, tokens: int
) -> tuple[dict[str, int], dict[str, int], tuple[str, ...]]:
  """(bytes of the weights, bytes while scoring, models whose config is not at hand).

  Args:
    reward: of the run.
    mesh: over which weights and rows are spread.
    tokens: of the longest conversation.
  """
  weights, scoring, unknown = {}, {}, []
  for name, options in reward_models(reward).items():
    model = _local_config(name)
    if model is None:
      unknown.append(name)
      continue
    item = jnp.dtype(options.get("param_dtype", "bfloat16")).itemsize
    weights[f"reward model {name}"] = tree_bytes(
      abstract_classifier_params(model), model, mesh, item=item
    )
    scoring[f"scores of {name}"] = _scoring_bytes(model, options, mesh, tokens)
  return weights, scoring, tuple(unknown)


def _scoring_bytes(
  model: ModelConfig, options: dict[str, Any], mesh: AbstractMesh, tokens: int
) -> int:
  """One layer's activations of a batch, with attention's scores and weights in float32."""
  multiple, longest = options.get("length_multiple", 128), options.get("max_length", 4096)
  width = min(-(-tokens // multiple) * multiple, longest)
  rows = math.ceil(options.get("batch_size", 16) / (mesh.shape["data"] * mesh.shape["fsdp"]))
  item = 4 if options.get("compute_dtype") == "float32" else 2
  heads = model.num_heads + 2 * model.num_kv_heads
  layer = 3 * model.hidden_size + 2 * model.intermediate_size + heads * model.head_dim
  return rows * width * (item * layer + 2 * 4 * model.num_heads * width)


def _local_config(name: str) -> ModelConfig | None:
  """From a folder, or from what the hub's cache holds; nothing is downloaded."""
  folder = pathlib.Path(name).expanduser()
  try:
    if not folder.is_dir():
      from huggingface_hub import try_to_load_from_cache

      file = try_to_load_from_cache(name, "config.json")
      if not isinstance(file, str):
        return None
      folder = pathlib.Path(file).parent
    return huggingface.read_config(folder)[0]
  except (ImportError, OSError, ValueError):
    return None
