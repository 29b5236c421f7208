"""The decoder: NNX modules name the parameters, pure functions of the plain tree compute.

`CausalLM` is a thin shell: it declares every parameter under the name and shape that checkpoints,
sharding and adapters rely on, and its call is `hidden_states` of its own tree. Outside `models/`
nothing sees NNX; `params` is a nested dict of arrays with the layers stacked on a leading axis.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from tea_jax.models.attention import AttentionKind, causal_attention
from tea_jax.models.config import ModelConfig
from tea_jax.models.layers import Attend, block, normalize, rotary_table, times_transposed
from tea_jax.models.sharding import constrain_rows

Params = dict[str, Any]
Remat = Literal["none", "full", "dots"]

_STANDARD_DEVIATION = 0.02


class Norm(nnx.Module):
  """Scale (and bias, for layer norm) of one norm or of a stack of norms."""

  def __init__(self, shape: tuple[int, ...], config: ModelConfig, *, bias: bool):
    # With an offset the stored scale is the deviation from it.
    self.scale = nnx.Param(jnp.full(shape, 1.0 - config.norm_offset, jnp.float32))
    if bias:
      self.bias = nnx.Param(jnp.zeros(shape))


class Linear(nnx.Module):
  """Kernel `[..., in, out]` and optional bias `[..., out]`."""

  def __init__(self, shape: tuple[int, ...], *, bias: bool, rngs: nnx.Rngs):
    self.kernel = nnx.Param(_STANDARD_DEVIATION * jax.random.normal(rngs.params(), shape))
    if bias:
      self.bias = nnx.Param(jnp.zeros(shape[:-2] + shape[-1:]))


class Embed(nnx.Module):
  """Token embeddings `[V, D]`, and positions `[max_positions, D]` when they are learned."""

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
    def table(rows: int) -> nnx.Param:
      values = jax.random.normal(rngs.params(), (rows, config.hidden_size))
      return nnx.Param(_STANDARD_DEVIATION * values)

    self.embedding = table(config.vocab_size)
    if config.position == "learned":
      self.position = table(config.max_positions)


class Attention(nnx.Module):
  """Projections of every layer's attention, stacked."""

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
    layers, model = config.num_layers, config.hidden_size
    inner, kv_inner = (n * config.head_dim for n in (config.num_heads, config.num_kv_heads))
    bias = config.attention_bias
    self.query = Linear((layers, model, inner), bias=bias, rngs=rngs)
    self.key = Linear((layers, model, kv_inner), bias=bias, rngs=rngs)
    self.value = Linear((layers, model, kv_inner), bias=bias, rngs=rngs)
    self.output = Linear((layers, inner, model), bias=config.output_bias, rngs=rngs)
    if config.query_key_norm:
      self.query_norm = Norm((layers, config.head_dim), config, bias=False)
      self.key_norm = Norm((layers, config.head_dim), config, bias=False)


class MLP(nnx.Module):
  """Projections of every layer's MLP, stacked."""

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
    layers, model, inner = config.num_layers, config.hidden_size, config.intermediate_size
    if config.gated_mlp:
      self.gate = Linear((layers, model, inner), bias=config.mlp_bias, rngs=rngs)
    self.up = Linear((layers, model, inner), bias=config.mlp_bias, rngs=rngs)
    self.down = Linear((layers, inner, model), bias=config.mlp_bias, rngs=rngs)


class Layers(nnx.Module):
  """All blocks, each parameter stacked on a leading axis of `num_layers`."""

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
    shape, bias = (config.num_layers, config.hidden_size), config.norm == "layer"
    self.input_norm = Norm(shape, config, bias=bias)
    self.post_attention_norm = Norm(shape, config, bias=bias)
    self.attention = Attention(config, rngs=rngs)
    self.mlp = MLP(config, rngs=rngs)


class Backbone(nnx.Module):
  """Everything but the head: what a language model and a reward model share."""

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
    self.config = config
    self.embed = Embed(config, rngs=rngs)
    self.layers = Layers(config, rngs=rngs)
    self.final_norm = Norm((config.hidden_size,), config, bias=config.norm == "layer")

  def __call__(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    return hidden_states(self.config, pure_params(self), tokens)


class CausalLM(Backbone):
  """Decoder-only language model; an untied one has its own `lm_head`."""

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
    super().__init__(config, rngs=rngs)
    if not config.tie_embeddings:
      shape = (config.hidden_size, config.vocab_size)
      self.lm_head = Linear(shape, bias=False, rngs=rngs)


def pure_params(module: nnx.Module) -> Params:
  """The module's parameters as a plain nested dict of arrays."""
  return nnx.to_pure_dict(nnx.split(module, nnx.Param)[1])


def init_params(config: ModelConfig, key: Array) -> Params:
  """Random float32 parameters of a `CausalLM`: normal with deviation 0.02, norms at identity."""
  return jax.jit(lambda key: pure_params(CausalLM(config, rngs=nnx.Rngs(key))))(key)


def abstract_params(config: ModelConfig) -> Params:
  """The tree of `init_params` as `jax.ShapeDtypeStruct`s; allocates nothing."""
  return jax.eval_shape(lambda: pure_params(CausalLM(config, rngs=nnx.Rngs(jax.random.key(0)))))


def num_parameters(tree: Any) -> int:
  """Numbers in all arrays, or shapes of arrays, of a tree."""
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def embed_tokens(
  config: ModelConfig, params: Params, tokens: Int[Array, "*batch"], positions: Array, dtype: Any
) -> Float[Array, "*batch D"]:
  """Token (and learned position) embeddings in the compute dtype."""
  x = params["embed"]["embedding"][tokens].astype(dtype)
  if config.embedding_scale != 1.0:
    x = x * jnp.asarray(config.embedding_scale, dtype)
  if config.position == "learned":
    x = x + params["embed"]["position"][positions].astype(dtype)
  return x


def run_layers(
  config: ModelConfig,
  layers: Params,
  x: Float[Array, "*batch D"],
  positions: Int[Array, "*batch"],
  attend: Attend,
  *,
  scan: bool = True,
  remat: Remat = "none",
  mesh: jax.sharding.Mesh | None = None,
) -> tuple[Float[Array, "*batch D"], Any]:
  """All blocks in order; what `attend` keeps is stacked on a leading layer axis.

  Args:
    config: the model.
    layers: `params["layers"]`, stacked.
    x: embedded tokens.
    positions: of each token in its row.
    attend: see `layers.block`.
    scan: one compiled block run `num_layers` times, or an unrolled graph (faster, long compile).
    remat: `"none"` keeps all activations for the backward pass, `"dots"` those of matrix products
      with weights, `"full"` only the residual stream between blocks.
    mesh: keeps the leading axis of `x` split over its rows between blocks; None on one device.
  """
  rotary = rotary_table(positions, config)

  def body(x: Array, weights: Params) -> tuple[Array, Any]:
    x, kept = block(constrain_rows(x, mesh), weights, config, rotary, attend)
    return constrain_rows(x, mesh), kept

  body = rematerialized(body, remat, in_loop=scan)
  if scan:
    return jax.lax.scan(body, x, layers)
  leaves, structure = jax.tree.flatten(layers)
  # Not leaf[index]: its gradient pads each layer's to the whole stack, which is quadratic in depth.
  split = [jax.lax.split(leaf, (1,) * config.num_layers) for leaf in leaves]
  kept = []
  for parts in zip(*split, strict=True):
    x, keep = body(x, structure.unflatten([part[0] for part in parts]))
    kept.append(keep)
  return x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *kept)


def rematerialized(body: Callable, remat: Remat, *, in_loop: bool) -> Callable:
  """`body` under the named recomputation policy.

  Outside a loop XLA would find that what is recomputed was there before, and keep it after all; on
  a CPU it does in spite of the barrier that is set against it.
  """
  if remat == "none":
    return body
  policies = jax.checkpoint_policies
  policy = policies.dots_with_no_batch_dims_saveable if remat == "dots" else None
  return jax.checkpoint(body, policy=policy, prevent_cse=not in_loop)


def hidden_states(
  config: ModelConfig,
  params: Params,
  tokens: Int[Array, "B T"],
  lengths: Int[Array, "B"] | None = None,
  *,
  dtype: Any = jnp.float32,
  scan: bool = True,
  remat: Remat = "none",
  attention: AttentionKind = "auto",
) -> Float[Array, "B T D"]:
  """Final hidden states (after the last norm) of left-aligned rows.

  Args:
    config: the model.
    params: its parameters.
    tokens: `[B, T]`, padded to the right with any id.
    lengths: `[B]` valid tokens; they do not change the result on valid tokens.
    dtype: compute dtype; norms and softmax are in float32 anyway.
    scan, remat: see `run_layers`.
    attention: see `attention.causal_attention`.
  """
  positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)

  def attend(query: Array, key: Array, value: Array) -> tuple[Array, None]:
    attended = causal_attention(
      query,
      key,
      value,
      lengths=lengths,
      sliding_window=config.sliding_window,
      kind=attention,
    )
    return attended, None

  x = embed_tokens(config, params, tokens, positions, dtype)
  x, _ = run_layers(config, params["layers"], x, positions, attend, scan=scan, remat=remat)
  return normalize(x, params["final_norm"], config)


def head_weight(config: ModelConfig, params: Params) -> tuple[Array, bool]:
  """The head's matrix and whether it is `[V, D]` (tied, or laid out for decoding) or `[D, V]`."""
  if config.tie_embeddings:
    return params["embed"]["embedding"], True
  head = params["lm_head"]
  if "kernel_transposed" in head:
    return head["kernel_transposed"], True
  return head["kernel"], False


def logits(
  config: ModelConfig, params: Params, hidden: Float[Array, "*batch D"]
) -> Float[Array, "*batch V"]:
  """Float32 logits; meant for few positions, since `[B, T, V]` is large."""
  weight, vocabulary_first = head_weight(config, params)
  weight = weight.astype(hidden.dtype)
  if vocabulary_first:
    return times_transposed(hidden, weight, dtype=jnp.float32)
  return jnp.einsum("...d,dv->...v", hidden, weight, preferred_element_type=jnp.float32)
