"""Bytes of a tree of parameters on one device of a mesh."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AbstractMesh

from tea_jax.models.config import ModelConfig
from tea_jax.models.sharding import ShardingRules, param_shardings

Tree = Any


def tree_bytes(
  shapes: Tree,
  model: ModelConfig,
  mesh: AbstractMesh,
  *,
  item: int,
  rules: ShardingRules = ShardingRules(),  # noqa: B008 (frozen)
  counts: Callable[[tuple[str, ...]], bool] = lambda path: True,
) -> int:
  """What one device holds: axes that the mesh does not divide lie there whole.

  Args:
    shapes: parameters of a model, or their shapes.
    model: whose heads decide what is divided.
    mesh: of the devices; they need not be there.
    item: bytes of a number.
    rules: logical axis -> mesh axis.
    counts: whether a leaf, by its path, is counted.
  """
  places = param_shardings(shapes, model, mesh, rules)

  def size(path: tuple[Any, ...], leaf: Any, place: Any) -> int:
    wanted = counts(tuple(entry.key for entry in path))
    return math.prod(place.shard_shape(leaf.shape)) * item if wanted else 0

  return sum(jax.tree.leaves(jax.tree_util.tree_map_with_path(size, shapes, places)))
