"""The arithmetic of one transformer block, as pure functions of plain weight dictionaries.

The same `block` serves training, prefill, decoding and the shared-prompt forward pass: they differ
only in the `attend` function that is passed in. Leading axes are free (`[..., D]`).

Axes: D model, N query heads, K key and value heads, H width of a head, T time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from tea_jax.models.config import ModelConfig

Weights = Mapping[str, Any]
Rotary = tuple[Array, Array] | None
Attend = Callable[[Array, Array, Array], tuple[Array, Any]]

_MOST_ROWS_LAST = 64  # measured on a CPU with AVX-512, see `times_transposed`

_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
  "silu": jax.nn.silu,
  "gelu": lambda x: jax.nn.gelu(x, approximate=False),
  "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}


def linear(x: Float[Array, "*batch n"], weights: Weights) -> Float[Array, "*batch k"]:
  """`x @ kernel + x @ a @ b + bias`, in the dtype of `x`; adapter and bias are optional.

  The kernel is `[in, out]`, or `[out, in]` under the name `kernel_transposed`.
  """
  if "kernel_transposed" in weights:
    y = times_transposed(x, weights["kernel_transposed"].astype(x.dtype))
  else:
    y = x @ weights["kernel"].astype(x.dtype)
  if "adapter" in weights:
    a, b = (weights["adapter"][name].astype(x.dtype) for name in ("a", "b"))
    y = y + (x @ a) @ b
  if "bias" in weights:
    y = y + weights["bias"].astype(x.dtype)
  return y


def times_transposed(
  x: Float[Array, "*batch n"], kernel: Float[Array, "k n"], *, dtype: Any = None
) -> Float[Array, "*batch k"]:
  """`x @ kernel.T` in `dtype` (by default that of `x`), fast where few rows meet a large kernel."""
  rows = x.size // x.shape[-1]
  if jax.default_backend() != "cpu" or rows == 1 or rows > _MOST_ROWS_LAST:
    return jnp.einsum("...n,kn->...k", x, kernel, preferred_element_type=dtype)
  # XLA hands a product to Eigen as it is written, and with few rows Eigen is faster with the kernel
  # on the left and rows last. The barriers keep XLA from folding the transposes back. One row alone
  # has a path of its own in XLA, which they would block; with many, transposing the logits costs
  # more than it gains.
  rows_last = jax.lax.optimization_barrier(x.reshape(-1, x.shape[-1]).T)
  product = jnp.matmul(kernel, rows_last, preferred_element_type=dtype)
  return jax.lax.optimization_barrier(product).T.reshape(*x.shape[:-1], kernel.shape[0])


def rms_normalize(
  x: Float[Array, "*batch n"], scale: Float[Array, "n"], *, epsilon: float, offset: float = 0.0
) -> Float[Array, "*batch n"]:
  """`x / sqrt(mean(x^2) + epsilon) * (scale + offset)`, computed in float32."""
  x32 = x.astype(jnp.float32)
  inverse = jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + epsilon)
  return (x32 * inverse * (scale.astype(jnp.float32) + offset)).astype(x.dtype)


def normalize(
  x: Float[Array, "*batch D"], weights: Weights, config: ModelConfig
) -> Float[Array, "*batch D"]:
  """The config's norm (RMS or layer norm) over the last axis, computed in float32."""
  if config.norm == "rms":
    return rms_normalize(
      x, weights["scale"], epsilon=config.norm_epsilon, offset=config.norm_offset
    )
  x32 = x.astype(jnp.float32)
  centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
  variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
  scale = weights["scale"].astype(jnp.float32) + config.norm_offset
  y = centred * jax.lax.rsqrt(variance + config.norm_epsilon) * scale
  if "bias" in weights:
    y = y + weights["bias"].astype(jnp.float32)
  return y.astype(x.dtype)


def rotary_frequencies(config: ModelConfig) -> np.ndarray:
  """`[H / 2]` float64 angles per position, scaled as the checkpoint asks.

  f_i = theta^(-2 i / H); `"linear"` divides all by the factor; `"llama3"` divides those whose
  wavelength exceeds the original context over `low_frequency_factor`, keeps those below the context
  over `high_frequency_factor`, and interpolates between.
  """
  exponents = np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim
  frequencies = config.rope_theta**-exponents
  scaling = config.rope_scaling
  if scaling is None:
    return frequencies
  if scaling.kind == "linear":
    return frequencies / scaling.factor
  turns = scaling.original_max_positions * frequencies / (2 * np.pi)
  low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
  keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
  return frequencies * (keep + (1.0 - keep) / scaling.factor)


def rotary_table(positions: Int[Array, "*batch"], config: ModelConfig) -> Rotary:
  """Cosines and sines `[..., 1, H / 2]` in float32, or None for learned positions."""
  if config.position != "rope":
    return None
  frequencies = jnp.asarray(rotary_frequencies(config), jnp.float32)
  angles = positions[..., None, None].astype(jnp.float32) * frequencies
  return jnp.cos(angles), jnp.sin(angles)


def rotate(x: Float[Array, "*batch heads H"], rotary: Rotary) -> Float[Array, "*batch heads H"]:
  """Rotates each pair (i, i + H/2) of a head by its position's angle (the half-split layout)."""
  if rotary is None:
    return x
  cos, sin = rotary
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
  return rotated.astype(x.dtype)


def query_key_value(
  x: Float[Array, "*batch D"], weights: Weights, config: ModelConfig, rotary: Rotary
) -> tuple[Array, Array, Array]:
  """Rotated queries `[..., N, H]`, rotated keys `[..., K, H]` and values `[..., K, H]`.

  Weights fused by `fuse_projections` take one matrix product instead of three.
  """
  heads, kv_heads, width = config.num_heads, config.num_kv_heads, config.head_dim
  if "query_key_value" in weights:
    fused = linear(x, weights["query_key_value"])
    cuts = (heads * width, (heads + kv_heads) * width)
    query, key, value = jnp.split(fused, cuts, axis=-1)
  else:
    query, key, value = (linear(x, weights[name]) for name in ("query", "key", "value"))
  query = query.reshape(*x.shape[:-1], heads, width)
  key = key.reshape(*x.shape[:-1], kv_heads, width)
  value = value.reshape(*x.shape[:-1], kv_heads, width)
  if config.query_key_norm:
    options = {"epsilon": config.norm_epsilon, "offset": config.norm_offset}
    query = rms_normalize(query, weights["query_norm"]["scale"], **options)
    key = rms_normalize(key, weights["key_norm"]["scale"], **options)
  return rotate(query, rotary), rotate(key, rotary), value


def mlp(
  x: Float[Array, "*batch D"], weights: Weights, config: ModelConfig
) -> Float[Array, "*batch D"]:
  """`down(act(gate(x)) * up(x))`, or `down(act(up(x)))` without a gate."""
  activation = _ACTIVATIONS[config.activation]
  if "gate_up" in weights:
    gate, up = jnp.split(linear(x, weights["gate_up"]), 2, axis=-1)
    hidden = activation(gate) * up
  elif config.gated_mlp:
    hidden = activation(linear(x, weights["gate"])) * linear(x, weights["up"])
  else:
    hidden = activation(linear(x, weights["up"]))
  return linear(hidden, weights["down"])


def block(
  x: Float[Array, "*batch D"],
  weights: Weights,
  config: ModelConfig,
  rotary: Rotary,
  attend: Attend,
) -> tuple[Float[Array, "*batch D"], Any]:
  """One pre-norm transformer block.

  Args:
    x: `[..., D]` residual stream.
    weights: one layer of `params["layers"]`.
    config: the model.
    rotary: `rotary_table` of the positions of `x`.
    attend: maps (query, key, value) to the attended values `[..., N, H]` and anything to keep, such
      as the new keys and values.

  Returns:
    The new residual stream and what `attend` kept.
  """
  with jax.named_scope("attention"):
    normed = normalize(x, weights["input_norm"], config)
    attended, kept = attend(*query_key_value(normed, weights["attention"], config, rotary))
    attended = attended.reshape(*x.shape[:-1], config.num_heads * config.head_dim)
    x = x + linear(attended, weights["attention"]["output"])
  with jax.named_scope("mlp"):
    normed = normalize(x, weights["post_attention_norm"], config)
    return x + mlp(normed, weights["mlp"], config), kept


def fuse_projections(weights: Weights, dtype: Any) -> Weights:
  """One layer for decoding: query/key/value and gate/up as one kernel each, `[out, in]`."""

  def transposed(parts: list[Weights]) -> Weights:
    fused = {"kernel_transposed": jnp.concatenate([part["kernel"].T for part in parts])}
    if "bias" in parts[0]:
      fused["bias"] = jnp.concatenate([part["bias"] for part in parts])
    return fused

  attention, feed_forward = dict(weights["attention"]), dict(weights["mlp"])
  parts = [attention.pop(name) for name in ("query", "key", "value")]
  attention["query_key_value"] = transposed(parts)
  attention["output"] = transposed([attention["output"]])
  if "gate" in feed_forward:
    feed_forward["gate_up"] = transposed([feed_forward.pop("gate"), feed_forward.pop("up")])
  else:
    feed_forward["up"] = transposed([feed_forward["up"]])
  feed_forward["down"] = transposed([feed_forward["down"]])
  return cast_matrices({**weights, "attention": attention, "mlp": feed_forward}, dtype)


def cast_matrices(weights: Weights, dtype: Any) -> Weights:
  """Kernels and tables in `dtype`; norms and biases stay as they are."""
  return jax.tree.map(lambda leaf: leaf.astype(dtype) if leaf.ndim > 1 else leaf, weights)
