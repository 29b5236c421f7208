"""Memory of an update beside parameters and optimiser, from shapes alone.

What the backward pass keeps is read from JAX's own trace of it. On top comes the fuller of two
moments: the head's chunk of logits, or the one layer that is recomputed and differentiated.

Axes: P prompts, m rollouts of each, T time, D model, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Var
from jax.sharding import AbstractMesh

from tea_jax.models.causal_lm import abstract_params, num_parameters
from tea_jax.models.config import ModelConfig
from tea_jax.models.fused_attention import KEY_BLOCK
from tea_jax.models.fused_head import default_chunk
from tea_jax.models.lora import attach_adapters, init_adapters
from tea_jax.models.shared_prompt import group_hidden_states
from tea_jax.runs.config import RunConfig
from tea_jax.runs.groups import PolicyConfig
from tea_jax.runs.plan_shapes import UpdateShape

Tree = Any


def update_bytes(
  config: RunConfig,
  model: ModelConfig,
  mesh: AbstractMesh,
  batch: UpdateShape,
  *,
  gradient: int,
  moments: int,
  cpu: bool,
) -> dict[str, int]:
  """Name -> bytes of one device while the policy is updated.

  Args:
    config, model: of the run.
    mesh: of its devices.
    batch: a micro-batch.
    gradient: bytes of the gradient, laid out as the trained parameters are.
    moments: bytes of the optimiser's state.
    cpu: plan as XLA does on a CPU: it multiplies bfloat16 matrices in float32, and copies the
      moments before it overwrites them.
  """
  options = config.model
  if cpu:
    options = dataclasses.replace(options, compute_dtype="float32")
  if cpu and not options.scan_layers:
    # Without a loop XLA finds there that what is recomputed was there before, barrier or not.
    options = dataclasses.replace(options, remat="none")
  own = _share_of_tensor(model, mesh.shape["tensor"])
  table = 4 * model.vocab_size * model.hidden_size // mesh.shape["tensor"]
  kept, layer = kept_bytes(own, options, batch), _layer_bytes(own, options, batch)
  # What is kept of a layer need not be computed again.
  working = max(layer - kept // model.num_layers, layer // 3)
  if mesh.shape["fsdp"] > 1:
    working += _kernels_bytes(own) // model.num_layers  # gathered
  head = _head_bytes(own, options, mesh, batch, table)
  if options.lora is None and not model.tie_embeddings:
    head -= table  # the embedding's gradient comes last
  parts = {
    "gradient": gradient,
    "activations": kept,
    "one layer or the head": max(working, head),
  }
  if batch.pieces > 1:
    parts["gradient sum"] = gradient
  if options.lora is None and mesh.size > 1:
    # The head's gradient is whole on each device until the end, beside the embedding's share.
    parts["gradient"] += table
  if cpu:
    # The moments' own memory holds other arrays meanwhile: most of a micro-batch's.
    parts["copies (CPU)"] = (
      moments // 4 if batch.pieces > 1 else max(moments // 2, moments - working)
    )
    rounded = config.model.compute_dtype == "bfloat16" and batch.pieces > 1
    if rounded or options.param_dtype == "bfloat16":
      # All layers' weights, converted once before the loop over layers or micro-batches.
      parts["copies (CPU)"] += _kernels_bytes(own)
  return parts


@functools.lru_cache(maxsize=128)
def kept_bytes(model: ModelConfig, options: PolicyConfig, batch: UpdateShape) -> int:
  """What the backward pass of a device's micro-batch keeps, weights and adapters not counted.

  Args:
    model: a device's share of it.
    options: precision, recomputation and adapters.
    batch: the micro-batch.
  """
  lora, shape = options.lora, jax.ShapeDtypeStruct
  dtype = jnp.dtype(options.param_dtype)
  weights = jax.tree.map(lambda leaf: shape(leaf.shape, dtype), abstract_params(model))
  trained = weights
  if lora is not None:
    trained = jax.eval_shape(lambda: init_adapters(model, lora, jax.random.key(0)))
  prompts, tokens = batch.own_prompts, batch.widths[-1]

  def kept(trained: Tree, frozen: Tree, *inputs: Any) -> list[Any]:
    def states(trained: Tree) -> Any:
      return group_hidden_states(
        model,
        trained if lora is None else attach_adapters(frozen, trained, lora),
        *inputs,
        dtype=jnp.dtype(options.compute_dtype),
        remat=options.remat,
        attention=options.attention,
      )

    return jax.tree.leaves(jax.vjp(states, trained)[1])

  jaxpr = jax.make_jaxpr(kept)(
    trained,
    weights if lora is not None else {},
    shape((prompts, batch.prompt), np.int32),
    shape((prompts,), np.int32),
    shape((prompts, batch.rollouts, tokens), np.int32),
  ).jaxpr
  # What goes in lies there anyway.
  arrays = {x for x in jaxpr.outvars if isinstance(x, Var)} - set(jaxpr.invars)
  return sum(x.aval.size * x.aval.dtype.itemsize for x in arrays)  # pyright: ignore


def _layer_bytes(model: ModelConfig, options: PolicyConfig, batch: UpdateShape) -> int:
  """Arrays that stand at once while a layer is differentiated, scores at their real width."""
  item = jnp.dtype(options.compute_dtype).itemsize
  prompts, inputs = batch.own_prompts, batch.widths[-1] - 1
  written = prompts * batch.rollouts * inputs
  tokens, heads = prompts * batch.prompt + written, model.num_heads * model.head_dim
  widths = (batch.prompt, batch.prompt + inputs)
  if options.attention == "fused":
    widths = tuple(min(width, KEY_BLOCK) for width in widths)
  scores = prompts * batch.prompt * widths[0] + written * widths[1]
  scores *= 4 * model.num_heads
  streams = 6 if options.lora is None else 10
  kept = item * (streams * tokens * model.hidden_size + 3 * written * heads)
  return kept + max(7 * item * tokens * model.intermediate_size + 2 * scores, 4 * scores)


def _head_bytes(
  model: ModelConfig, options: PolicyConfig, mesh: AbstractMesh, batch: UpdateShape, table: int
) -> int:
  """A chunk of logits, the product that is added to the head's gradient, and a gathered head."""
  count = batch.prompts * batch.rollouts * batch.widths[-1]
  chunk = -(-default_chunk(count, model.vocab_size) // batch.shards)
  logits = 4 * chunk * model.vocab_size // mesh.shape["tensor"]
  product = table if options.lora is None else 0
  gathered = table if mesh.shape["fsdp"] > 1 else 0
  # Devices that score their own tokens hold a chunk twice.
  return logits + max(product, logits if batch.shards > 1 else 0) + gathered


def _kernels_bytes(model: ModelConfig) -> int:
  """Weights of all layers in float32."""
  return 4 * num_parameters(abstract_params(model)["layers"])


def _share_of_tensor(model: ModelConfig, parts: int) -> ModelConfig:
  """The model that one device of `tensor` computes: its heads and its part of the MLP."""

  def share(count: int) -> int:
    return count if count % parts else count // parts

  # Query heads follow the groups of their keys: where these do not divide, none are split.
  grouped = model.num_kv_heads % parts == 0
  return dataclasses.replace(
    model,
    num_heads=share(model.num_heads) if grouped else model.num_heads,
    num_kv_heads=share(model.num_kv_heads),
    intermediate_size=share(model.intermediate_size),
  )
