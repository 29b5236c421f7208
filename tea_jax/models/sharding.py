"""Where parameters live on a mesh of devices: one table from logical to mesh axes.

Mesh axes: `data` (copies of the model), `fsdp` (parameters split, batch split), `tensor` (heads,
MLP and vocabulary split).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from tea_jax.models.config import ModelConfig

MESH_AXES = ("data", "fsdp", "tensor")
MeshAxes = str | tuple[str, ...] | None


@dataclasses.dataclass(frozen=True)
class ShardingRules:
  """Logical axis -> mesh axis (or several, or None to replicate).

  Attributes:
    batch: rows of a batch.
    layers: the stacked leading axis.
    vocabulary: rows of the embedding, columns of the head.
    position: rows of learned positions.
    model: width of the residual stream, D.
    heads: query heads times their width.
    kv_heads: key and value heads times their width.
    mlp: width of the MLP.
    norm: scales and biases of norms.
  """

  batch: MeshAxes = ("data", "fsdp")
  layers: MeshAxes = None
  vocabulary: MeshAxes = "tensor"
  position: MeshAxes = None
  model: MeshAxes = "fsdp"
  heads: MeshAxes = "tensor"
  kv_heads: MeshAxes = "tensor"
  mlp: MeshAxes = "tensor"
  norm: MeshAxes = None

  def spec(self, axes: tuple[str | None, ...]) -> PartitionSpec:
    """Partition of an array with these logical axes.

    Raises:
      ValueError: for an unknown logical axis, or two axes on one mesh axis.
    """
    names = {field.name for field in dataclasses.fields(self)}
    unknown = [axis for axis in axes if axis is not None and axis not in names]
    if unknown:
      raise ValueError(
        f"logical axis {unknown[0]!r} is not known; known: {', '.join(sorted(names))}."
      )
    mapped = [None if axis is None else getattr(self, axis) for axis in axes]
    used = [name for entry in mapped for name in _names(entry)]
    twice = sorted({name for name in used if used.count(name) > 1})
    if twice:
      raise ValueError(f"logical axes {axes} put two axes on the mesh axis {twice[0]!r}.")
    return PartitionSpec(*mapped)


_PROJECTIONS = {
  "query": ("model", "heads"),
  "key": ("model", "kv_heads"),
  "value": ("model", "kv_heads"),
  "output": ("heads", "model"),
  "gate": ("model", "mlp"),
  "up": ("model", "mlp"),
  "down": ("mlp", "model"),
}


def make_mesh(
  *, data: int = 1, fsdp: int = 1, tensor: int = 1, devices: Any = None
) -> jax.sharding.Mesh:
  """Mesh of `data * fsdp * tensor` devices; one of the sizes may be -1 for "the rest".

  Raises:
    ValueError: if the sizes do not multiply to the number of devices.
  """
  devices = list(jax.devices() if devices is None else devices)
  sizes = [data, fsdp, tensor]
  if sizes.count(-1) == 1:
    known = math.prod(size for size in sizes if size != -1)
    sizes[sizes.index(-1)] = len(devices) // known
  if min(sizes) < 1 or math.prod(sizes) != len(devices):
    raise ValueError(
      f"data={data}, fsdp={fsdp}, tensor={tensor} do not multiply to {len(devices)} devices."
    )
  return jax.make_mesh(tuple(sizes), MESH_AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def logical_axes(path: tuple[str, ...]) -> tuple[str | None, ...]:
  """Logical axes of one leaf of the parameter tree.

  Raises:
    ValueError: for a leaf that the table does not know.
  """
  owner, kind = path[-2], path[-1]
  stacked = ("layers",) if path[0] == "layers" else ()
  if owner in _PROJECTIONS:
    axes = _PROJECTIONS[owner]
    return (*stacked, *(axes if kind == "kernel" else axes[1:]))
  if owner.endswith("norm"):
    return (*stacked, "norm")
  known: dict[tuple[str, ...], tuple[str | None, ...]] = {
    ("embed", "embedding"): ("vocabulary", "model"),
    ("embed", "position"): ("position", "model"),
    ("lm_head", "kernel"): ("model", "vocabulary"),
    ("score", "kernel"): ("model", None),
  }
  if path not in known:
    raise ValueError(f"no logical axes are known for the parameter {'.'.join(path)}.")
  return known[path]


def param_shardings(
  params: Mapping[str, Any],
  config: ModelConfig,
  mesh: Mesh | AbstractMesh | None,
  rules: ShardingRules = ShardingRules(),
) -> dict[str, Any] | None:
  """The tree of `NamedSharding`s for a tree of parameters (or of their shapes).

  An axis whose size (for heads: whose number of heads) the mesh axis does not divide is replicated.

  Returns:
    A nested dict like `params`, or None without a mesh.
  """
  if mesh is None:
    return None

  def place(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
    axes = logical_axes(tuple(entry.key for entry in path))
    units = {"heads": config.num_heads, "kv_heads": config.num_kv_heads}
    entries = []
    for axis, entry, size in zip(axes, rules.spec(axes), leaf.shape):
      count = units[axis] if axis in units else int(size)
      entries.append(entry if count % _extent(mesh, entry) == 0 else None)
    return NamedSharding(mesh, PartitionSpec(*entries))

  return jax.tree_util.tree_map_with_path(place, dict(params))


def batch_sharding(
  mesh: Mesh,
  rules: ShardingRules = ShardingRules(),
) -> NamedSharding:
  """Sharding of an array whose leading axis is the batch."""
  return NamedSharding(mesh, rules.spec(("batch",)))


def row_shards(mesh: Mesh | None, rules: ShardingRules = ShardingRules()) -> int:
  """Parts into which the mesh splits the rows of a batch; 1 without a mesh."""
  return 1 if mesh is None else _extent(mesh, rules.batch)


def parts_of_rows(rows: NamedSharding | None) -> int:
  """Parts into which a sharding splits its leading axis; 1 without one."""
  return 1 if rows is None else _extent(rows.mesh, rows.spec[0])


def constrain_rows(x: jax.Array, mesh: Mesh | None) -> jax.Array:
  """Keeps the leading axis of an activation split over the devices, where it divides."""
  if mesh is None or x.shape[0] % row_shards(mesh):
    return x
  return jax.lax.with_sharding_constraint(x, batch_sharding(mesh))


def _names(entry: MeshAxes) -> tuple[str, ...]:
  return () if entry is None else (entry,) if isinstance(entry, str) else entry


def _extent(mesh: Mesh | AbstractMesh, entry: MeshAxes) -> int:
  return math.prod(mesh.shape[name] for name in _names(entry))
