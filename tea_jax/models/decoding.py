"""Prefill and one decoding step of a group: the prompt's cache is kept once, never repeated.

All rollouts of a group attend to the T_p keys of their prompt and to the T_c keys of their own.
Every row writes its step t at index t of its completion cache, so one slice update a layer serves
all rows; a row's position is its prompt's length plus t.

Axes: P prompts, m rollouts of each, R = P m rows, K key heads, H head width, T_p and T_c time.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tea_jax.models import causal_lm
from tea_jax.models.attention import AttentionKind, KeyValue, as_cache, causal_attention
from tea_jax.models.causal_lm import Params
from tea_jax.models.config import ModelConfig
from tea_jax.models.decode_attention import XLA, DecodeAttention, OwnCache
from tea_jax.models.layers import (
  block,
  cast_matrices,
  fuse_projections,
  normalize,
  rotary_table,
)
from tea_jax.models.visibility import visible_keys

Cache = tuple[KeyValue, ...]
"""Of the prompts, layer by layer."""
CompletionCache = tuple[OwnCache, ...]


class Prefill(NamedTuple):
  """What the prompts leave behind.

  Attributes:
    hidden: `[P, D]` final hidden state of each prompt's last token.
    cache: `KeyValue` of each layer, of P rows and T_p places.
  """

  hidden: Float[Array, "P D"]
  cache: Cache


def decode_weights(config: ModelConfig, params: Params, dtype: Any) -> Params:
  """`params` laid out for decoding: a tuple of layers, fused projections, kernels `[out, in]`.

  Few rows meet each kernel at a step, so reading and packing it is the cost, and Eigen packs
  `[out, in]` faster than `[in, out]`. Call it outside the jit that decodes, or XLA undoes the
  layout; it compiles one layer and runs it for each.
  """
  layers = tuple(
    _decode_layer(params["layers"], index, jnp.dtype(dtype)) for index in range(config.num_layers)
  )
  rest = {name: value for name, value in params.items() if name != "layers"}
  return {**_decode_rest(rest, jnp.dtype(dtype)), "layers": layers}


@functools.partial(jax.jit, static_argnums=2)
def _decode_layer(layers: Params, index: int, dtype: Any) -> Params:
  def take(leaf: Array) -> Array:
    return jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False)

  return dict(fuse_projections(jax.tree.map(take, layers), dtype))


def _decode_rest(rest: Params, dtype: Any) -> Params:
  # Not jitted: what needs no change, such as a tied float32 embedding, is not copied.
  if "lm_head" in rest:
    rest["lm_head"] = {"kernel_transposed": rest["lm_head"]["kernel"].T}
  return dict(cast_matrices(rest, dtype))


def empty_cache(
  config: ModelConfig, rows: int, places: int, dtype: Any, attention: DecodeAttention = XLA
) -> CompletionCache:
  """Zeroed caches of every layer, in the layout that `attention` reads."""
  shape = rows, config.num_kv_heads, places, config.head_dim
  return tuple(attention.empty(shape, dtype) for _ in range(config.num_layers))


def prefill(
  config: ModelConfig,
  params: Params,
  tokens: Int[Array, "P T_p"],
  lengths: Int[Array, "P"],
  *,
  dtype: Any = jnp.float32,
  attention: AttentionKind = "auto",
) -> Prefill:
  """Runs the prompts once and keeps their keys and values.

  Args:
    config: the model.
    params: of the policy, or the weights of `decode_step`.
    tokens, lengths: of the prompts.
    dtype, attention: see `causal_lm.hidden_states`.
  """
  positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)

  def attend(query: Array, key: Array, value: Array) -> tuple[Array, KeyValue]:
    attended = causal_attention(
      query,
      key,
      value,
      lengths=lengths,
      sliding_window=config.sliding_window,
      kind=attention,
    )
    return attended, as_cache(key, value)

  x = causal_lm.embed_tokens(config, params, tokens, positions, dtype)
  if isinstance(params["layers"], tuple):
    rotary, kept = rotary_table(positions, config), []
    for layer in params["layers"]:
      x, own = block(x, layer, config, rotary, attend)
      kept.append(own)
    cache = tuple(kept)
  else:
    x, caches = causal_lm.run_layers(config, params["layers"], x, positions, attend)
    cache = tuple(
      KeyValue(caches.key[index], caches.value[index]) for index in range(config.num_layers)
    )
  last = jnp.take_along_axis(x, (lengths - 1)[:, None, None], axis=1)[:, 0]
  return Prefill(normalize(last, params["final_norm"], config), cache)


def decode_step(
  config: ModelConfig,
  weights: Params,
  tokens: Int[Array, "R"],
  step: Int[Array, ""],
  prompt_lengths: Int[Array, "P"],
  prompt_cache: Cache,
  completion_cache: CompletionCache,
  attention: DecodeAttention = XLA,
) -> tuple[Float[Array, "R D"], CompletionCache]:
  """Feeds completion token number `step` of every row.

  Args:
    config: the model.
    weights: from `decode_weights`.
    tokens: `[R]`, rows of a prompt next to each other.
    step: index of these tokens in their completions.
    prompt_lengths: `[P]`.
    prompt_cache, completion_cache: see the module's text.
    attention: that `completion_cache` was made for.

  Returns:
    Final hidden states `[R, D]`, which predict token `step + 1`, and the updated completion cache.
  """
  rows, prompts = tokens.shape[0], prompt_lengths.shape[0]
  rollouts = rows // prompts
  positions = jnp.repeat(prompt_lengths, rollouts) + step
  prompt_keys = jnp.arange(prompt_cache[0].key.shape[-1])
  window = config.sliding_window
  visible_prompt = visible_keys(prompt_lengths[:, None] + step, prompt_keys[None], window)[:, 0]
  visible_prompt &= prompt_keys < prompt_lengths[:, None]
  rotary = rotary_table(positions, config)
  x = causal_lm.embed_tokens(config, weights, tokens, positions, weights_dtype(weights))
  updated = []
  for index, layer in enumerate(weights["layers"]):

    def attend(query: Array, key: Array, value: Array, index: int = index):
      own = completion_cache[index].write(key, value, step)
      prompt = prompt_cache[index], visible_prompt
      return attention.attend(query, prompt, own, step, window), own

    x, kept = block(x, layer, config, rotary, attend)
    updated.append(kept)
  return normalize(x, weights["final_norm"], config), tuple(updated)


def weights_dtype(weights: Params) -> Any:
  """Compute dtype that `decode_weights` cast to."""
  return weights["embed"]["embedding"].dtype
