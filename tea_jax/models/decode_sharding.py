"""Where weights live while rows are decoded: a second table of shardings, and the way there.

Training splits weights over `fsdp` and gathers each layer once for thousands of tokens. A decoding
step has a few tokens a row, so weights in the compute dtype are copied to every device of `fsdp`
where they fit, each device decodes its own rows, and only `tensor` still splits weights and heads.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tea_jax.models.causal_lm import Params, abstract_params, num_parameters
from tea_jax.models.config import ModelConfig
from tea_jax.models.layers import fuse_projections
from tea_jax.models.sharding import ShardingRules, param_shardings, parts_of_rows
from tea_jax.runtime.memory import device_limit_bytes

DECODE_RULES = ShardingRules(model=None)
"""Logical axis -> mesh axis while decoding: as in training, but for `fsdp`."""

_SHARE = 0.4  # of a device: the rest is for what training keeps and for the rows' caches


def copies_weights(config: ModelConfig, dtype: Any, tensor: int) -> bool:
  """Whether the weights in `dtype`, split over `tensor` devices, fit on each device beside the run.

  They do on a CPU, whose devices share the host's memory.
  """
  limit = device_limit_bytes()
  count = num_parameters(abstract_params(config))
  return limit is None or count * jnp.dtype(dtype).itemsize // tensor <= _SHARE * limit


def cache_sharding(rows: NamedSharding, shape: tuple[int, ...]) -> NamedSharding:
  """Of a cache of `shape`, rows and key heads first, each split where it divides.

  Args:
    rows: sharding of the rows that decode.
    shape: of a layer's keys or values.
  """
  mesh = rows.mesh
  spec = PartitionSpec(
    rows.spec[0] if shape[0] % parts_of_rows(rows) == 0 else None,
    "tensor" if shape[1] % mesh.shape["tensor"] == 0 else None,
  )
  return NamedSharding(mesh, spec)


def decode_weights_on(config: ModelConfig, params: Params, dtype: Any, mesh: Mesh) -> Params:
  """`params` laid out for `prefill` and `decode_step` on a mesh, by one compiled reshard.

  Args:
    config: the model.
    params: on the mesh, as training splits them.
    dtype: of the matrices; norms and biases stay as they are.
    mesh: of the devices.

  Returns:
    Weights with a tuple of layers. Projections are fused, as on one device, unless `tensor` splits
    them: parts of a fused kernel would lie on the wrong devices.
  """
  return _reshard(config, jnp.dtype(dtype), mesh)(params)


@functools.lru_cache(maxsize=8)
def _reshard(config: ModelConfig, dtype: Any, mesh: Mesh) -> Callable[[Params], Params]:
  shapes = abstract_params(config)
  trained = param_shardings(shapes, config, mesh)
  decoded: Any = param_shardings(shapes, config, mesh, DECODE_RULES)
  fused = mesh.shape["tensor"] == 1

  def cast(path: tuple[Any, ...], leaf: jax.Array, place: NamedSharding) -> jax.Array:
    matrix = leaf.ndim > (2 if path[0].key == "layers" else 1)
    # In its own place first, so that half as many bytes travel in bfloat16.
    return jax.lax.with_sharding_constraint(leaf.astype(dtype) if matrix else leaf, place)

  def layout(params: Params) -> Params:
    params = jax.tree_util.tree_map_with_path(cast, params, trained)
    leaves, structure = jax.tree.flatten(params["layers"])
    layers = tuple(
      structure.unflatten([leaf[index] for leaf in leaves]) for index in range(config.num_layers)
    )
    if fused:
      layers = tuple(dict(fuse_projections(layer, dtype)) for layer in layers)
    return {**params, "layers": layers}

  if fused:
    places: Any = NamedSharding(mesh, PartitionSpec())
  else:
    layer = jax.tree.map(
      lambda place: NamedSharding(mesh, PartitionSpec(*place.spec[1:])), decoded["layers"]
    )
    places = {**decoded, "layers": (layer,) * config.num_layers}
  return jax.jit(layout, out_shardings=places)
