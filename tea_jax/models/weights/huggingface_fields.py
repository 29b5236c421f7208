"""Fields of a Hugging Face `config.json`, read and written by layout: Llama's and GPT-2's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from tea_jax.models.config import ModelConfig, RopeScaling

_ACTIVATIONS: dict[str, Literal["silu", "gelu_tanh", "gelu"]] = {
  "silu": "silu",
  "swish": "silu",
  "gelu_new": "gelu_tanh",
  "gelu_pytorch_tanh": "gelu_tanh",
  "gelu": "gelu",
}


_HF_ACTIVATIONS = {"silu": "silu", "gelu_tanh": "gelu_pytorch_tanh", "gelu": "gelu"}


_LARGEST = 2**31 - 1
_MOST_LAYERS = 10_000
_SIZES = (
  *("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads"),
  *("num_key_value_heads", "head_dim", "max_position_embeddings", "sliding_window"),
  *("n_embd", "n_head", "n_positions", "n_inner", "original_max_position_embeddings"),
)
_LAYERS = ("num_hidden_layers", "n_layer")
_POSITIVE = (
  *("rms_norm_eps", "layer_norm_epsilon", "rope_theta"),
  *("factor", "low_freq_factor", "high_freq_factor"),
)
_SWITCHES = ("tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window")
_NAMES = ("model_type", "hidden_act", "hidden_activation", "activation_function")


def check_values(values: Mapping[str, Any]) -> None:
  """Refuses fields of a config that cannot be meant: wrong types, numbers out of range.

  Raises:
    ValueError: naming the field and its value.
  """

  def refuse(key: str, what: str) -> None:
    raise ValueError(f"{key}={values[key]!r:.80} must be {what}.")

  for key, value in values.items():
    if value is None:
      continue
    if key in _SIZES + _LAYERS:
      most = _MOST_LAYERS if key in _LAYERS else _LARGEST
      if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        what = "number of layers" if key in _LAYERS else "number"
        refuse(key, f"a whole {what} from 1 to {most}")
    elif key == "max_window_layers":
      if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        refuse(key, "a whole number, at least 0")
    elif key in _POSITIVE:
      if isinstance(value, bool) or not isinstance(value, int | float):
        refuse(key, "a number")
      if not 0 < value < 1e300:  # an integer may exceed every float
        refuse(key, "a positive finite number")
    elif key in _SWITCHES and not isinstance(value, bool):
      refuse(key, "true or false")
    elif key in _NAMES and not isinstance(value, str):
      refuse(key, "a name")
    elif key in ("rope_scaling", "rope_parameters"):
      if not isinstance(value, Mapping):
        refuse(key, "an object")
        continue
      try:
        check_values(value)
      except ValueError as error:
        raise ValueError(f"{key}: {error}") from error


def token_ids(key: str, value: Any, config: ModelConfig | None = None) -> tuple[int, ...]:
  """The ids of one special token or a list of them.

  Raises:
    ValueError: if one is no id, or beyond the vocabulary of `config`.
  """
  ids = () if value is None else tuple(value) if isinstance(value, list | tuple) else (value,)
  for index in ids:
    if isinstance(index, bool) or not isinstance(index, int) or index < 0:
      raise ValueError(f"{key}={value!r:.80} must be the id of a token, or a list of ids.")
    if config is not None and index >= config.vocab_size:
      raise ValueError(f"{key}={index} is beyond vocab_size={config.vocab_size}.")
  return ids


def required(values: Mapping[str, Any], key: str) -> Any:
  if values.get(key) is None:
    raise ValueError(f"The model's config.json lacks the key {key!r}.")
  return values[key]


def read_activation(name: str) -> Literal["silu", "gelu_tanh", "gelu"]:
  if name not in _ACTIVATIONS:
    raise ValueError(
      f"The activation {name!r} is not supported; supported: {', '.join(sorted(_ACTIVATIONS))}."
    )
  return _ACTIVATIONS[name]


def llama_fields(architecture: str, values: Mapping[str, Any]) -> dict[str, Any]:
  hidden_size, num_heads = (
    required(values, "hidden_size"),
    required(values, "num_attention_heads"),
  )
  num_layers = required(values, "num_hidden_layers")
  activation = values.get("hidden_activation") or values.get("hidden_act", "silu")
  if architecture == "Gemma" and activation == "gelu":
    activation = "gelu_pytorch_tanh"  # the first Gemma configs say "gelu" and mean this
  theta, scaling = _rope(values)
  bias = architecture != "Qwen2" and bool(values.get("attention_bias", False))
  return {
    "hidden_size": hidden_size,
    "intermediate_size": required(values, "intermediate_size"),
    "num_layers": num_layers,
    "num_heads": num_heads,
    "num_kv_heads": values.get("num_key_value_heads", num_heads),
    "head_dim": values.get("head_dim", hidden_size // num_heads),
    "max_positions": required(values, "max_position_embeddings"),
    "norm_epsilon": float(values.get("rms_norm_eps", 1e-6)),
    "rope_theta": theta,
    "rope_scaling": scaling,
    "sliding_window": _sliding_window(architecture, values, num_layers),
    "activation": read_activation(activation),
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
    return theta, RopeScaling("linear", float(required(rope, "factor")))
  if kind == "llama3":
    return theta, RopeScaling(
      "llama3",
      factor=float(required(rope, "factor")),
      low_frequency_factor=float(required(rope, "low_freq_factor")),
      high_frequency_factor=float(required(rope, "high_freq_factor")),
      original_max_positions=int(required(rope, "original_max_position_embeddings")),
    )
  raise ValueError(f"rope_type={kind!r} is not supported; supported: default, linear, llama3.")


def gpt2_fields(architecture: str, values: Mapping[str, Any]) -> dict[str, Any]:
  del architecture
  hidden_size, num_heads = required(values, "n_embd"), required(values, "n_head")
  return {
    "hidden_size": hidden_size,
    "intermediate_size": values.get("n_inner") or 4 * hidden_size,
    "num_layers": required(values, "n_layer"),
    "num_heads": num_heads,
    "num_kv_heads": num_heads,
    "head_dim": hidden_size // num_heads,
    "max_positions": required(values, "n_positions"),
    "norm": "layer",
    "norm_epsilon": float(values["layer_norm_epsilon"]),
    "position": "learned",
    "activation": read_activation(values["activation_function"]),
    "gated_mlp": False,
    "attention_bias": True,
    "output_bias": True,
    "mlp_bias": True,
  }


def llama_keys(config: ModelConfig) -> dict[str, Any]:
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


def gpt2_keys(config: ModelConfig) -> dict[str, Any]:
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
