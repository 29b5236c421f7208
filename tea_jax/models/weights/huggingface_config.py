"""Hugging Face's `config.json`, read into a `ModelConfig` and written from one.

A new family is one entry of `_FAMILIES`: its class name, HF's own defaults (HF may leave out a
value that equals its default), and the options that the family fixes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from tea_jax.models.config import Head, ModelConfig
from tea_jax.models.weights.huggingface_fields import (
  check_values,
  gpt2_fields,
  gpt2_keys,
  llama_fields,
  llama_keys,
  required,
  token_ids,
)


@dataclasses.dataclass(frozen=True)
class _Family:
  """How one HF `model_type` is read: its class name, HF's own defaults, and what it fixes."""

  architecture: str
  defaults: Mapping[str, Any]
  traits: Mapping[str, Any] = dataclasses.field(default_factory=dict)


_FAMILIES: dict[str, _Family] = {
  "llama": _Family("Llama", {"bos_token_id": 1, "eos_token_id": 2}),
  "mistral": _Family(
    "Mistral",
    {"num_key_value_heads": 8, "sliding_window": 4096, "bos_token_id": 1, "eos_token_id": 2},
  ),
  "qwen2": _Family("Qwen2", {}, {"attention_bias": True}),
  "qwen3": _Family("Qwen3", {"head_dim": 128}, {"query_key_norm": True}),
  "gemma": _Family(
    "Gemma",
    {
      "num_key_value_heads": 16,
      "head_dim": 256,
      "hidden_act": "gelu_pytorch_tanh",
      "tie_word_embeddings": True,
      "pad_token_id": 0,
      "eos_token_id": 1,
      "bos_token_id": 2,
    },
    {"norm_offset": 1.0},
  ),
  "gpt2": _Family(
    "GPT2",
    {
      "layer_norm_epsilon": 1e-5,
      "activation_function": "gelu_new",
      "tie_word_embeddings": True,
      "bos_token_id": 50256,
      "eos_token_id": 50256,
    },
  ),
}
_MODEL_TYPE = {family.architecture: model_type for model_type, family in _FAMILIES.items()}
_HEAD_SUFFIX: dict[str, Head] = {
  "ForCausalLM": "causal_lm",
  "LMHeadModel": "causal_lm",
  "ForSequenceClassification": "sequence_classifier",
}
# Options that change the forward pass and that no layer here implements: (key, harmless values).
_REFUSED: tuple[tuple[str, tuple[Any, ...]], ...] = (
  ("partial_rotary_factor", (None, 1, 1.0)),
  ("scale_attn_by_inverse_layer_idx", (None, False)),
  ("scale_attn_weights", (None, True)),
  ("add_cross_attention", (None, False)),
  ("quantization_config", (None,)),
  ("use_bidirectional_attention", (None, False)),
)

SUPPORTED_ARCHITECTURES = tuple(sorted(_MODEL_TYPE))


def config_from_hf(hf: Mapping[str, Any]) -> ModelConfig:
  """Reads the dictionary of a Hugging Face `config.json`.

  Args:
    hf: the parsed file; `rope_theta` and the scaling may sit at the top level (transformers 4) or
      under `rope_parameters` (transformers 5).

  Returns:
    The model's description.

  Raises:
    ValueError: for an unsupported architecture, rope type, activation or option, or a missing key;
      the message names it and lists what is supported.
  """
  check_values(hf)
  model_type = hf.get("model_type")
  if model_type not in _FAMILIES:
    raise ValueError(
      f"The architecture model_type={model_type!r} ({_class_name(hf)}) is not supported; "
      f"supported: {', '.join(sorted(_FAMILIES))}."
    )
  family = _FAMILIES[model_type]
  for key, harmless in _REFUSED:
    if hf.get(key) not in harmless:
      raise ValueError(
        f"{key}={hf[key]!r} of the {family.architecture} config is not supported; "
        f"it must be absent or {harmless[-1]!r}."
      )
  values = {**family.defaults, **{key: value for key, value in hf.items() if value is not None}}
  # An explicit null switches off, which is not the same as leaving the key out.
  for key in ("sliding_window", "bos_token_id", "eos_token_id", "pad_token_id"):
    if key in hf and hf[key] is None:
      values[key] = None
  read = gpt2_fields if model_type == "gpt2" else llama_fields
  vocab_size = required(values, "vocab_size")

  def special(key: str) -> tuple[int, ...]:
    # Negative padding ids mean none; a default of the family may not fit a small vocabulary.
    ids = values.get(key)
    if key == "pad_token_id" and isinstance(ids, int) and ids < 0:
      return ()
    found = token_ids(key, ids)
    beyond = [index for index in found if index >= vocab_size]
    if beyond and hf.get(key) is not None and key == "eos_token_id":
      raise ValueError(f"{key}={beyond[0]} is beyond vocab_size={vocab_size}.")
    return tuple(index for index in found if index < vocab_size)

  ends, begins, pads = map(special, ("eos_token_id", "bos_token_id", "pad_token_id"))
  return ModelConfig(
    architecture=family.architecture,
    vocab_size=vocab_size,
    tie_embeddings=bool(values.get("tie_word_embeddings", False)),
    bos_token_id=begins[0] if begins else None,
    eos_token_ids=ends,
    pad_token_id=pads[0] if pads else None,
    **{**read(family.architecture, values), **family.traits},
  )


def head_from_hf(hf: Mapping[str, Any]) -> Head:
  """Which head a checkpoint carries, from `architectures` (a causal LM if it does not say).

  Raises:
    ValueError: for another head, or a classifier with more than one label.
  """
  name = _class_name(hf)
  if name is None:
    return "causal_lm"
  matching: list[Head] = [head for suffix, head in _HEAD_SUFFIX.items() if name.endswith(suffix)]
  if not matching:
    raise ValueError(
      f"The head of {name} is not supported; supported class names end in "
      f"{', '.join(sorted(_HEAD_SUFFIX))}."
    )
  head = matching[0]
  names = hf.get("id2label") or {0: "", 1: ""}
  if not isinstance(names, Mapping):
    raise ValueError(f"id2label={names!r:.80} must be an object.")
  labels = hf.get("num_labels") or len(names)
  if head == "sequence_classifier" and labels != 1:
    raise ValueError(
      f"{name} has {labels} labels; a reward model needs exactly 1 (set num_labels or id2label)."
    )
  return head


def config_to_hf(
  config: ModelConfig, *, head: Head = "causal_lm", dtype: str = "float32"
) -> dict[str, Any]:
  """The dictionary of a Hugging Face `config.json`; `config_from_hf` inverts it.

  The rope options are written both where transformers 5 and where transformers 4, vLLM and the
  llama.cpp converters look for them.
  """
  if config.architecture not in _MODEL_TYPE:
    raise ValueError(
      f"architecture={config.architecture!r} has no Hugging Face layout here; "
      f"supported: {', '.join(SUPPORTED_ARCHITECTURES)}."
    )
  suffix = "ForSequenceClassification"
  if head == "causal_lm":
    suffix = "LMHeadModel" if config.architecture == "GPT2" else "ForCausalLM"
  ends = config.eos_token_ids
  hf: dict[str, Any] = {
    "architectures": [config.architecture + suffix],
    "model_type": _MODEL_TYPE[config.architecture],
    "vocab_size": config.vocab_size,
    "tie_word_embeddings": config.tie_embeddings,
    "bos_token_id": config.bos_token_id,
    "eos_token_id": None if not ends else ends[0] if len(ends) == 1 else list(ends),
    "pad_token_id": config.pad_token_id,
    "dtype": dtype,
    "torch_dtype": dtype,
    "use_cache": True,
  }
  if head == "sequence_classifier":
    hf |= {"num_labels": 1, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
  return hf | (gpt2_keys(config) if config.architecture == "GPT2" else llama_keys(config))


def _class_name(hf: Mapping[str, Any]) -> str | None:
  names = hf.get("architectures") or [None]
  if not isinstance(names, list) or not isinstance(names[0], str | None):
    raise ValueError(f"architectures={names!r:.80} must be a list of class names.")
  return names[0]
