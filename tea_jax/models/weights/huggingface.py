"""Hugging Face folders: safetensors in and out, with config, generation config and tokenizer.

A load reads every tensor lazily, slice by slice, into its place; a save streams one tensor at a
time, so neither holds the weights twice. `load(save(params))` is exact.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import glob
import json
import os
import pathlib
import platform
import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from tea_jax.models.config import Head, ModelConfig
from tea_jax.models.weights import reader
from tea_jax.models.weights.huggingface_config import config_from_hf, config_to_hf, head_from_hf
from tea_jax.models.weights.huggingface_fields import token_ids
from tea_jax.models.weights.safetensors_files import (
  STORED,
  SafetensorsFolder,
  Stored,
  write_safetensors,
)
from tea_jax.models.weights.tensor_map import Path, TensorRef, huggingface_map
from tea_jax.runtime import processes
from tea_jax.runtime.files import check_links, read_json

_GENERATION = "generation_config.json"
# Buffers that old checkpoints carry and that the forward pass computes.
_BUFFERS = ("rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")
# What a model folder may hold, so that replacing one never deletes anything else.
_OURS = (
  "config.json",
  "generation_config.json",
  "*.safetensors",
  "*.safetensors.index.json",
  "tokenizer*",
  "special_tokens_map.json",
  "vocab.json",
  "merges.txt",
  "added_tokens.json",
  "chat_template.jinja",
  "additional_chat_templates",
  "README.md",
  "*.model",
  "*.spm",
  "vocab.txt",
)


def read_config(folder: str | os.PathLike[str]) -> tuple[ModelConfig, Head]:
  """Model and head from `config.json`, with the ends that `generation_config.json` adds."""
  file = pathlib.Path(folder) / "config.json"
  if not file.is_file():
    raise FileNotFoundError(f"{folder} is not a model folder: it has no config.json.")
  check_links(folder)
  hf = read_json(file)
  try:
    config, head = config_from_hf(hf), head_from_hf(hf)
  except ValueError as error:
    raise ValueError(f"{file}: {error}") from error
  # Chat models list their end-of-turn tokens here only, and HF's generate reads this file.
  extra = read_generation_config(folder).get("eos_token_id")
  if extra is not None:
    try:
      config = dataclasses.replace(config, eos_token_ids=token_ids("eos_token_id", extra, config))
    except ValueError as error:
      raise ValueError(f"{pathlib.Path(folder) / _GENERATION}: {error}") from error
  return config, head


def read_generation_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
  """The settings of `generation_config.json`; empty if there is none."""
  file = pathlib.Path(folder) / _GENERATION
  return read_json(file) if file.is_file() else {}


def load_params(
  folder: str | os.PathLike[str],
  config: ModelConfig,
  abstract: Mapping[str, Any],
  *,
  head: Head = "causal_lm",
  dtype: Any = np.float32,
  shardings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
  """Reads the parameter tree of a Hugging Face folder.

  Args:
    folder: with `model.safetensors` or shards and their index.
    config: of the model, from `read_config`.
    abstract: expected tree of `jax.ShapeDtypeStruct`.
    head: what the tree has on top.
    dtype: of the parameters; float16 and bfloat16 checkpoints are widened exactly.
    shardings: see `reader.read_params`.

  Raises:
    ValueError: naming what is missing, left over, misshapen or damaged.
  """
  store = SafetensorsFolder(folder, ignored=_BUFFERS)
  names = store.shapes()
  prefix = "transformer." if config.architecture == "GPT2" else "model."
  if not any(name.startswith(prefix) for name in names):
    prefix = ""  # a bare backbone, as the first GPT-2 checkpoints were saved
  refs = huggingface_map(config, head=head, prefix=prefix)
  ignored = set()
  embedding = refs["embed", "embedding"].name
  if config.tie_embeddings and head == "causal_lm" and {embedding, "lm_head.weight"} <= set(names):
    _check_tied(store, embedding)
    ignored.add("lm_head.weight")
  return reader.read_params(
    store, refs, abstract, dtype=dtype, shardings=shardings, ignored=ignored
  )


def save_pretrained(
  path: str | os.PathLike[str],
  config: ModelConfig,
  params: Mapping[str, Any],
  tokenizer: Any = None,
  *,
  head: Head = "causal_lm",
  dtype: str = "float32",
  max_shard_bytes: int = 5 * 10**9,
  generation: Mapping[str, Any] | None = None,
) -> None:
  """Writes a folder that `transformers`, vLLM and the llama.cpp converters load.

  Everything goes to a temporary folder beside `path` first; an interrupted save leaves the old
  folder whole. The first process writes; the others only gather.

  Args:
    path: the folder; replaced if it is a model folder, refused if it holds anything else.
    config: the model.
    params: its parameters, on one device or sharded.
    tokenizer: a `transformers` tokenizer; its files and chat template go beside the weights.
    head: what sits on the backbone.
    dtype: `"float32"` (exact), `"bfloat16"` or `"float16"` (rounded).
    max_shard_bytes: tensors beyond this go to a further file.
    generation: settings of `generation_config.json` to keep, such as a temperature.

  Raises:
    ValueError: for an unknown dtype, or parameters that do not fit the config.
    FileExistsError: if `path` exists and is not a model folder.
  """
  if dtype not in STORED:
    raise ValueError(f"dtype={dtype!r} is not supported; supported: {', '.join(sorted(STORED))}.")
  target = pathlib.Path(path).absolute()
  foreign = processes.on_first(foreign_entries, target)
  if foreign:
    raise FileExistsError(
      f"{path} holds {foreign[0]!r}, which is not part of a model folder; choose another path."
    )
  leaves = flatten_dict(dict(params))
  pieces = _pieces(huggingface_map(config, head=head), leaves, config)
  gathered: set[str] = set()

  def values(name: str) -> np.ndarray:
    gathered.add(name)
    return _assemble(leaves, pieces[name][1])

  tensors = {
    name: Stored(stored, dtype, functools.partial(values, name))
    for name, (stored, _) in pieces.items()
  }
  folder = None
  with processes.together():
    if processes.is_first():
      folder = _temporary_folder(target)
  with processes.together():
    try:
      write_safetensors(folder, tensors, max_shard_bytes=max_shard_bytes)
      if folder is not None:
        written = config_to_hf(config, head=head, dtype=dtype)
        _write_json(folder / "config.json", written)
        if head == "causal_lm":
          special = {
            "bos_token_id": config.bos_token_id,
            "eos_token_id": written["eos_token_id"],
            "pad_token_id": config.pad_token_id,
          }
          _write_json(folder / _GENERATION, {**(generation or {}), **special})
        if tokenizer is not None:
          tokenizer.save_pretrained(folder)
          _write_for_transformers_4(folder / "tokenizer_config.json")
        _swap(folder, target)
    except Exception:
      if processes.several():  # the others still gather what this one can no longer write
        for name in [name for name in tensors if name not in gathered]:
          values(name)
      raise
    finally:
      if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


def _check_tied(store: SafetensorsFolder, embedding: str) -> None:
  """A tied checkpoint may keep a copy of the embedding as its head, but no other head."""
  rows = store.shapes()[embedding][0]
  equal = store.shapes()[embedding] == store.shapes()["lm_head.weight"]
  for start in range(0, rows if equal else 0, 8192):
    part = (slice(start, min(rows, start + 8192)), slice(None))
    equal = equal and np.array_equal(
      store.read(embedding, part), store.read("lm_head.weight", part)
    )
  if not equal:
    raise ValueError(
      f"{store.source} has tie_word_embeddings=true, but lm_head.weight differs from {embedding}; "
      "set tie_word_embeddings to false in config.json to keep the separate head."
    )


_Piece = tuple[Path, TensorRef, int | None]


def _pieces(
  refs: Mapping[Path, TensorRef], leaves: Mapping[Path, Any], config: ModelConfig
) -> dict[str, tuple[tuple[int, ...], list[_Piece]]]:
  """Tensor -> its stored shape and the leaves (one, or the parts of a fused one) it is made of."""
  if set(refs) != set(leaves):
    differing = sorted(".".join(path) for path in set(refs) ^ set(leaves))
    raise ValueError(
      f"the parameters do not fit the {config.architecture} config; missing or extra: "
      f"{', '.join(differing[:8])}."
    )
  found: dict[str, tuple[tuple[int, ...], list[_Piece]]] = {}
  for layer in (None, *range(config.num_layers)):
    for path, ref in refs.items():
      if ref.stacked == (layer is not None):
        shape = reader.stored_shape(ref, tuple(leaves[path].shape))
        found.setdefault(ref.name.format(layer=layer), (shape, []))[1].append((path, ref, layer))
  return found


def _assemble(leaves: Mapping[Path, Any], pieces: list[_Piece]) -> np.ndarray:
  """One tensor in its stored layout."""
  arrays = []
  for path, ref, layer in sorted(pieces, key=lambda piece: piece[1].start):
    array = processes.fetch(leaves[path] if layer is None else leaves[path][layer])
    arrays.append(array.T if ref.transposed else array)
  return arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=-1)


def _write_for_transformers_4(file: pathlib.Path) -> None:
  """Names what transformers 5 writes as transformers 4 and vLLM call it; 5 reads that too."""
  if file.is_file():
    options = read_json(file)
    if options.get("tokenizer_class") == "TokenizersBackend":
      options["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(options.get("extra_special_tokens"), list):
      options["additional_special_tokens"] = options.pop("extra_special_tokens")
    _write_json(file, options)


def foreign_entries(folder: pathlib.Path) -> list[str]:
  """What a folder holds that no model folder does."""
  if not folder.exists():
    return []
  if not folder.is_dir():
    return [folder.name]
  names = sorted(entry.name for entry in folder.iterdir())
  return [name for name in names if not any(fnmatch.fnmatch(name, known) for known in _OURS)]


def _temporary_folder(target: pathlib.Path) -> pathlib.Path:
  """A new folder beside `target`; what killed saves on this machine left there is removed."""
  target.parent.mkdir(parents=True, exist_ok=True)
  host = platform.node() or "host"
  for left in target.parent.glob(f".{glob.escape(target.name)}.{glob.escape(host)}-*.saving"):
    if not _is_running(left.name.removesuffix(".saving").rpartition("-")[2]):
      shutil.rmtree(left, ignore_errors=True)
  folder = target.with_name(f".{target.name}.{host}-{os.getpid()}.saving")
  shutil.rmtree(folder, ignore_errors=True)
  folder.mkdir()
  return folder


def _is_running(process: str) -> bool:
  try:
    os.kill(int(process), 0)
  except (ProcessLookupError, ValueError):
    return False
  except PermissionError:
    pass
  return True


def _swap(folder: pathlib.Path, target: pathlib.Path) -> None:
  """Moves `folder` to `target`; what was there is deleted only after the move."""
  if not target.exists():
    os.replace(folder, target)
    return
  old = folder.with_name(folder.name.replace(".saving", "-old.saving"))
  os.replace(target, old)
  os.replace(folder, target)
  shutil.rmtree(old, ignore_errors=True)


def _write_json(file: pathlib.Path, content: Mapping[str, Any]) -> None:
  file.write_text(json.dumps(content, indent=2) + "\n")
