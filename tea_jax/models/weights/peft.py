"""PEFT's adapter folders: `adapter_config.json` and `adapter_model.safetensors`, in and out."""

from __future__ import annotations

import json
import math
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from tea_jax.models.causal_lm import Params
from tea_jax.models.config import ModelConfig
from tea_jax.models.lora import PARENTS, LoraConfig, kernel_shape
from tea_jax.models.weights import reader
from tea_jax.models.weights.peft_options import check_options, scale_of
from tea_jax.models.weights.safetensors_files import Stored, open_safetensors, write_safetensors
from tea_jax.models.weights.tensor_map import TensorRef, huggingface_map
from tea_jax.runtime.files import check_links, read_json, write_text, write_whole

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")


def save_adapters(
  path: str | os.PathLike[str],
  config: ModelConfig,
  adapters: Params,
  lora: LoraConfig,
  *,
  base_model: str | None = None,
) -> None:
  """Writes `adapter_config.json` and `adapter_model.safetensors` as PEFT does.

  Where the model fuses projections (GPT-2's query, key and value), the adapters become the blocks
  of one adapter of the summed rank, which is exactly equivalent.

  Args:
    path: the folder; made if need be.
    config: of the adapted model.
    adapters: the tree.
    lora: what it was made with.
    base_model: name or path written as `base_model_name_or_path`.
  """
  folder = pathlib.Path(path)
  folder.mkdir(parents=True, exist_ok=True)
  refs = _target_refs(config)
  tensors: dict[str, np.ndarray] = {}
  wider: dict[str, int] = {}
  modules: dict[str, list[str]] = {}
  adapted = {_module(refs[target]) for target in lora.targets}
  for target, ref in refs.items():
    if _module(ref) in adapted:
      modules.setdefault(_module(ref), []).append(target)
  for module, targets in modules.items():
    parts = {name: _adapter(adapters, name, config, lora) for name in targets}
    ranks = sum(part["a"].shape[-1] for part in parts.values())
    total = refs[targets[0]].total or next(iter(parts.values()))["b"].shape[-1]
    if ranks != lora.rank:
      wider[_short(module)] = ranks
    for layer in range(config.num_layers):
      a = np.concatenate([part["a"][layer].T for part in parts.values()])
      b = np.zeros((total, ranks), a.dtype)
      column = 0
      for name, part in parts.items():
        start, (rank, out) = refs[name].start, part["b"].shape[1:]
        b[start : start + out, column : column + rank] = part["b"][layer].T
        column += rank
      stem = "base_model.model." + module.format(layer=layer)
      tensors[f"{stem}.lora_A.weight"], tensors[f"{stem}.lora_B.weight"] = a, b
  stored = {
    name: Stored(values.shape, "float32", lambda values=values: values)
    for name, values in tensors.items()
  }
  write_whole(
    folder / _WEIGHTS,
    lambda path: write_safetensors(folder, stored, max_shard_bytes=2**62, name=path.name),
  )
  written = _peft_config(config, lora, sorted(map(_short, modules)), wider, base_model)
  write_text(folder / _CONFIG, json.dumps(written, indent=2) + "\n")


def load_adapters(path: str | os.PathLike[str], config: ModelConfig) -> tuple[Params, LoraConfig]:
  """Reads a PEFT folder.

  Ranks or scales that differ between modules are folded into B, layers without an adapter get
  zeros, so `merge_adapters` gives what PEFT's own merge gives.

  Args:
    path: with `adapter_config.json` and `adapter_model.safetensors`.
    config: of the model that was adapted.

  Raises:
    FileNotFoundError: if a file is missing.
    ValueError: for another kind of adapter, an unsupported option, or tensors that do not fit.
  """
  folder = pathlib.Path(path)
  for name in (_CONFIG, _WEIGHTS):
    if not (folder / name).is_file():
      raise FileNotFoundError(f"{folder} is not a PEFT adapter: it has no {name}.")
  check_links(folder)
  options = read_json(folder / _CONFIG)
  check_options(options, folder / _CONFIG)
  pairs = _read_pairs(folder / _WEIGHTS)
  parts: dict[str, dict[int, tuple[np.ndarray, np.ndarray, float]]] = {}
  for target, ref in _target_refs(config).items():
    for layer in range(config.num_layers):
      module = _module(ref).format(layer=layer)
      if module in pairs:
        a, b = _part(*pairs[module], ref, config, target, f"{module} of {folder}")
        scale = scale_of(options, module, pairs[module][0].shape[0])
        if a.any():  # an all-zero A is the unadapted part of a fused module
          parts.setdefault(target, {})[layer] = (a, b, scale)
  known = {
    _module(ref).format(layer=layer)
    for ref in _target_refs(config).values()
    for layer in range(config.num_layers)
  }
  extra = sorted(set(pairs) - known)
  if extra or not parts:
    raise ValueError(
      f"{folder} adapts modules that {config.architecture} does not have here: "
      f"{', '.join(extra[:8]) or 'none at all'}."
    )
  rank = max(part[0].shape[-1] for layers in parts.values() for part in layers.values())
  stabilized = bool(options.get("use_rslora", False))
  largest = max(part[2] for layers in parts.values() for part in layers.values())
  alpha = largest * (math.sqrt(rank) if stabilized else rank)
  lora = LoraConfig(
    rank=rank,
    alpha=float(options["lora_alpha"]) if rank == options["r"] else alpha,
    targets=tuple(name for name in PARENTS if name in parts),
    rank_stabilized=stabilized,
  )
  tree: Params = {}
  for target in lora.targets:
    layers, width, out = kernel_shape(config, target)
    a = reader.aligned_empty((layers, width, rank), np.float32)
    b = reader.aligned_empty((layers, rank, out), np.float32)
    a[...], b[...] = 0.0, 0.0
    for layer, (part_a, part_b, scale) in parts[target].items():
      a[layer, :, : part_a.shape[-1]] = part_a
      b[layer, : part_b.shape[0]] = part_b * np.float32(scale / lora.scale if lora.scale else 0.0)
    leaf = {"a": jax.device_put(a), "b": jax.device_put(b)}
    tree.setdefault("layers", {}).setdefault(PARENTS[target], {})[target] = leaf
  return tree, lora


def _adapter(
  adapters: Params, target: str, config: ModelConfig, lora: LoraConfig
) -> dict[str, np.ndarray]:
  """One target on the host; zeros for the part of a fused module that is not adapted."""
  if target in lora.targets:
    return jax.tree.map(np.asarray, adapters["layers"][PARENTS[target]][target])
  layers, width, out = kernel_shape(config, target)
  return {
    "a": np.zeros((layers, width, lora.rank), np.float32),
    "b": np.zeros((layers, lora.rank, out), np.float32),
  }


def _target_refs(config: ModelConfig) -> dict[str, TensorRef]:
  refs = huggingface_map(config)
  paths = {name: ("layers", parent, name, "kernel") for name, parent in PARENTS.items()}
  return {name: refs[path] for name, path in paths.items() if path in refs}


def _module(ref: TensorRef) -> str:
  return ref.name.removesuffix(".weight")


def _short(module: str) -> str:
  """`self_attn.q_proj`: the parent tells GPT-2's two `c_proj` apart."""
  return ".".join(module.split(".")[-2:])


def _peft_config(
  config: ModelConfig,
  lora: LoraConfig,
  modules: list[str],
  wider: Mapping[str, int],
  base_model: str | None,
) -> dict[str, Any]:
  """PEFT's `adapter_config.json`; a fused adapter keeps its scale through a wider alpha."""
  alpha = int(lora.alpha) if float(lora.alpha).is_integer() else lora.alpha
  growth = {name: rank / lora.rank for name, rank in wider.items()}
  if lora.rank_stabilized:
    growth = {name: math.sqrt(factor) for name, factor in growth.items()}
  return {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": base_model,
    "r": lora.rank,
    "lora_alpha": alpha,
    "target_modules": modules,
    "rank_pattern": dict(wider),
    "alpha_pattern": {name: lora.alpha * factor for name, factor in growth.items()},
    "use_rslora": lora.rank_stabilized,
    "use_dora": False,
    "bias": "none",
    "lora_dropout": 0.0,
    "fan_in_fan_out": config.architecture == "GPT2",
    "init_lora_weights": True,
    "inference_mode": True,
    "modules_to_save": None,
    "layers_to_transform": None,
    "layers_pattern": None,
  }


def _read_pairs(file: pathlib.Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Module -> (A `[rank, in]`, B `[out, rank]`) in float32."""
  handle = open_safetensors(file)
  sides: dict[str, dict[str, np.ndarray]] = {}
  for name in handle.keys():  # noqa: SIM118 (not a mapping)
    match = _KEY.fullmatch(name)
    if match is None:
      raise ValueError(f"tensor {name} of {file} is no LoRA matrix of a linear layer.")
    with np.errstate(over="ignore"):
      values = np.asarray(handle.get_tensor(name)).astype(np.float32)
    if not np.isfinite(values).all():
      raise ValueError(f"tensor {name} of {file} holds values that are not finite.")
    if values.ndim != 2:
      raise ValueError(f"tensor {name} of {file} has shape {values.shape}; LoRA's are matrices.")
    sides.setdefault(match["module"], {})[match["side"]] = values
  for module, found in sides.items():
    if len(found) != 2:
      raise ValueError(f"{file} has only one of lora_A and lora_B for {module}.")
  return {module: (found["A"], found["B"]) for module, found in sides.items()}


def _part(
  a: np.ndarray, b: np.ndarray, ref: TensorRef, config: ModelConfig, target: str, what: str
) -> tuple[np.ndarray, np.ndarray]:
  """Our A `[in, rank]` and B `[rank, out]` of one target, from a module that may be fused."""
  _, width, out = kernel_shape(config, target)
  total, rank = ref.total or out, a.shape[0]
  if a.shape != (rank, width) or b.shape != (total, rank):
    raise ValueError(
      f"{what} has A {a.shape} and B {b.shape}; expected ({rank}, {width}) and ({total}, {rank})."
    )
  rows = b[ref.start : ref.start + out]
  parts = total // out
  if parts > 1 and rank % parts == 0:
    inner = rank // parts
    blocks = b.reshape(parts, out, parts, inner)
    if all(not blocks[i, :, j].any() for i in range(parts) for j in range(parts) if i != j):
      own = slice(inner * (ref.start // out), inner * (ref.start // out + 1))
      a, rows = a[own], rows[:, own]  # the blocks that `save_adapters` wrote
  return a.T, rows.T
