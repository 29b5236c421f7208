"""Hugging Face's `config.json`, read into a `ModelConfig` and written from one.

A new family is one entry of `_FAMILIES`: its class name, HF's own defaults (HF may leave out a
value that equals its default), and the options that the family fixes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from tea_jax.models.config import Head, ModelConfig, RopeScaling


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
_ACTIVATIONS: dict[str, Literal["silu", "gelu_tanh", "gelu"]] = {
  "silu": "silu",
  "swish": "silu",
  "gelu_new": "gelu_tanh",
  "gelu_pytorch_tanh": "gelu_tanh",
  "gelu": "gelu",
}
_HF_ACTIVATIONS = {"silu": "silu", "gelu_tanh": "gelu_pytorch_tanh", "gelu": "gelu"}
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
  # An explicit null switches the window off, which is not the same as leaving the key out.
  if "sliding_window" in hf and hf["sliding_window"] is None:
    values["sliding_window"] = None
  read = _gpt2_fields if model_type == "gpt2" else _llama_fields
  ends = values.get("eos_token_id")
  ends = () if ends is None else tuple(ends) if isinstance(ends, (list, tuple)) else (ends,)
  return ModelConfig(
    architecture=family.architecture,
    vocab_size=_required(values, "vocab_size"),
    tie_embeddings=bool(values.get("tie_word_embeddings", False)),
    bos_token_id=values.get("bos_token_id"),
    eos_token_ids=ends,
    pad_token_id=values.get("pad_token_id"),
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
  labels = hf.get("num_labels") or len(hf.get("id2label") or {0: "", 1: ""})
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
  return hf | (_gpt2_keys(config) if config.architecture == "GPT2" else _llama_keys(config))


def _class_name(hf: Mapping[str, Any]) -> str | None:
  return (hf.get("architectures") or [None])[0]


def _required(values: Mapping[str, Any], key: str) -> Any:
  if values.get(key) is None:
    raise ValueError(f"The model's config.json lacks the key {key!r}.")
  return values[key]


def _activation(name: str) -> Literal["silu", "gelu_tanh", "gelu"]:
  if name not in _ACTIVATIONS:
    raise ValueError(
      f"The activation {name!r} is not supported; supported: {', '.join(sorted(_ACTIVATIONS))}."
    )
  return _ACTIVATIONS[name]


def _llama_fields(architecture: str, values: Mapping[str, Any]) -> dict[str, Any]:
  hidden_size, num_heads = (
    _required(values, "hidden_size"),
    _required(values, "num_attention_heads"),
  )
  num_layers = _required(values, "num_hidden_layers")
  activation = values.get("hidden_activation") or values.get("hidden_act", "silu")
  if architecture == "Gemma" and activation == "gelu":
    activation = "gelu_pytorch_tanh"  # the first Gemma configs say "gelu" and mean this
  theta, scaling = _rope(values)
  bias = architecture != "Qwen2" and bool(values.get("attention_bias", False))
  return {
    "hidden_size": hidden_size,
    "intermediate_size": _required(values, "intermediate_size"),
    "num_layers": num_layers,
    "num_heads": num_heads,
    "num_kv_heads": values.get("num_key_value_heads", num_heads),
    "head_dim": values.get("head_dim", hidden_size // num_heads),
    "max_positions": _required(values, "max_position_embeddings"),
    "norm_epsilon": float(values.get("rms_norm_eps", 1e-6)),
    "rope_theta": theta,
    "rope_scaling": scaling,
    "sliding_window": _sliding_window(architecture, values, num_layers),
    "activation": _activation(activation),
    "attention_bias": bias,
    "output_bias": bias,
    "mlp_bias": architecture == "Llama" and bool(values.get("mlp_bias", False)),
    "embedding_scale": hidden_size**0.5 if architecture == "Gemma" else 1.0,
  }


def _sliding_window(architecture: str, values: Mapping[str, Any], num_layers: int) -> int | None:
  """One window for all layers, or none; Qwen may give it to the upper layers only: refused."""
  window = values.get("sliding_window")
  if architecture == "Mistral" or window is None:
    return window if architecture == "Mistral" else None
  if architecture not in ("Qwen2", "Qwen3") or not values.get("use_sliding_window", False):
    return None
  first = values.get("max_window_layers", 28)
  kinds = values.get("layer_types") or [
    "full_attention" if layer < first else "sliding_attention" for layer in range(num_layers)
  ]
  if len(set(kinds)) > 1:
    raise ValueError(
      f"A sliding window on some layers only (max_window_layers={first} of {num_layers}) is not "
      "supported; supported: all layers or none."
    )
  return window if kinds[0] == "sliding_attention" else None


def _rope(values: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
  rope = {**(values.get("rope_scaling") or {}), **(values.get("rope_parameters") or {})}
  theta = float(rope.get("rope_theta", values.get("rope_theta", 10000.0)))
  kind = rope.get("rope_type", rope.get("type", "default"))
  if kind == "default":
    return theta, None
  if kind == "linear":
    return theta, RopeScaling("linear", float(_required(rope, "factor")))
  if kind == "llama3":
    return theta, RopeScaling(
      "llama3",
      factor=float(_required(rope, "factor")),
      low_frequency_factor=float(_required(rope, "low_freq_factor")),
      high_frequency_factor=float(_required(rope, "high_freq_factor")),
      original_max_positions=int(_required(rope, "original_max_position_embeddings")),
    )
  raise ValueError(f"rope_type={kind!r} is not supported; supported: default, linear, llama3.")


def _gpt2_fields(architecture: str, values: Mapping[str, Any]) -> dict[str, Any]:
  del architecture
  hidden_size, num_heads = _required(values, "n_embd"), _required(values, "n_head")
  return {
    "hidden_size": hidden_size,
    "intermediate_size": values.get("n_inner") or 4 * hidden_size,
    "num_layers": _required(values, "n_layer"),
    "num_heads": num_heads,
    "num_kv_heads": num_heads,
    "head_dim": hidden_size // num_heads,
    "max_positions": _required(values, "n_positions"),
    "norm": "layer",
    "norm_epsilon": float(values["layer_norm_epsilon"]),
    "position": "learned",
    "activation": _activation(values["activation_function"]),
    "gated_mlp": False,
    "attention_bias": True,
    "output_bias": True,
    "mlp_bias": True,
  }


def _llama_keys(config: ModelConfig) -> dict[str, Any]:
  keys: dict[str, Any] = {
    "hidden_size": config.hidden_size,
    "intermediate_size": config.intermediate_size,
    "num_hidden_layers": config.num_layers,
    "num_attention_heads": config.num_heads,
    "num_key_value_heads": config.num_kv_heads,
    "head_dim": config.head_dim,
    "max_position_embeddings": config.max_positions,
    "rms_norm_eps": config.norm_epsilon,
    "hidden_act": _HF_ACTIVATIONS[config.activation],
    "attention_bias": config.attention_bias,
    "attention_dropout": 0.0,
  }
  if config.architecture == "Llama":
    keys["mlp_bias"] = config.mlp_bias
  if config.architecture in ("Mistral", "Qwen2", "Qwen3"):
    keys["sliding_window"] = config.sliding_window
  if config.architecture in ("Qwen2", "Qwen3"):
    keys["use_sliding_window"] = config.sliding_window is not None
    keys["max_window_layers"] = 0 if config.sliding_window is not None else config.num_layers
  scaling: dict[str, Any] = {"rope_type": "default"}
  if config.rope_scaling is not None:
    scaling = {"rope_type": config.rope_scaling.kind, "factor": config.rope_scaling.factor}
    if config.rope_scaling.kind == "llama3":
      scaling |= {
        "low_freq_factor": config.rope_scaling.low_frequency_factor,
        "high_freq_factor": config.rope_scaling.high_frequency_factor,
        "original_max_position_embeddings": config.rope_scaling.original_max_positions,
      }
    keys["rope_scaling"] = dict(scaling)
  keys["rope_theta"] = config.rope_theta
  keys["rope_parameters"] = scaling | {"rope_theta": config.rope_theta}
  return keys


def _gpt2_keys(config: ModelConfig) -> dict[str, Any]:
  return {
    "n_embd": config.hidden_size,
    "n_inner": config.intermediate_size,
    "n_layer": config.num_layers,
    "n_head": config.num_heads,
    "n_positions": config.max_positions,
    "layer_norm_epsilon": config.norm_epsilon,
    "activation_function": "gelu_new" if config.activation == "gelu_tanh" else config.activation,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
  }
