"""LoRA: low-rank adapters as a transform of parameters; `peft` reads and writes their files.

The adapters are a tree of their own, and there are two ways to use them:

  W' = W + scale * A B,  scale = alpha / rank

`merge_adapters` adds them into the kernels, for sampling and export. `attach_adapters` puts them
beside the kernels, x W' = x W + (x scale A) B: training differentiates
`loss(attach_adapters(params, adapters, lora))`, which never holds a kernel's gradient.

Source: arXiv 2106.09685, section 4.1; the rank-stabilised scale alpha / sqrt(rank): 2312.03732.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from tea_jax.models.causal_lm import Params, abstract_params
from tea_jax.models.config import ModelConfig

PARENTS = {
  **dict.fromkeys(("query", "key", "value", "output"), "attention"),
  **dict.fromkeys(("gate", "up", "down"), "mlp"),
}
"""Projection -> the part of a layer that it belongs to."""


@dataclasses.dataclass(frozen=True)
class LoraConfig:
  """What is adapted, and how strongly.

  Attributes:
    rank: inner width of the adapters.
    alpha: numerator of the scale.
    targets: projections of every layer: query, key, value, output, gate, up, down.
    rank_stabilized: scale alpha / sqrt(rank) instead of alpha / rank.
  """

  rank: int = 16
  alpha: float = 32.0
  targets: tuple[str, ...] = ("query", "key", "value", "output", "gate", "up", "down")
  rank_stabilized: bool = False

  def __post_init__(self):
    if self.rank < 1:
      raise ValueError(f"rank={self.rank} of the adapters must be at least 1.")
    unknown = [name for name in self.targets if name not in PARENTS]
    if unknown or not self.targets:
      raise ValueError(
        f"targets={self.targets} of the adapters must be some of {', '.join(PARENTS)}."
      )

  @property
  def scale(self) -> float:
    return self.alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)


def init_adapters(config: ModelConfig, lora: LoraConfig, key: Array) -> Params:
  """New adapters that change nothing: A uniform in +-1/sqrt(in) as PEFT's, B zero.

  Args:
    config: the model.
    lora: rank, alpha, targets.
    key: a JAX random key.

  Returns:
    `layers.{attention,mlp}.{target}.{a [L, in, rank], b [L, rank, out]}`, float32.

  Raises:
    ValueError: if the model lacks a target.
  """
  tree: Params = {}
  for index, target in enumerate(lora.targets):
    layers, width, out = kernel_shape(config, target)
    bound = 1.0 / math.sqrt(width)
    shape = (layers, width, lora.rank)
    a = jax.random.uniform(jax.random.fold_in(key, index), shape, minval=-bound, maxval=bound)
    b = jnp.zeros((layers, lora.rank, out), jnp.float32)
    tree.setdefault("layers", {}).setdefault(PARENTS[target], {})[target] = {"a": a, "b": b}
  return tree


def merge_adapters(
  params: Params, adapters: Params, lora: LoraConfig, *, dtype: Any = None
) -> Params:
  """Parameters with `scale * A B` added to every adapted kernel; the rest is shared, not copied.

  Args:
    params: of the model.
    adapters: from `init_adapters` or `load_adapters`.
    lora: what they were made with.
    dtype: of the adapted kernels; their own by default.
  """
  layers = dict(params["layers"])
  for parent, targets in adapters["layers"].items():
    projections = dict(layers[parent])
    for target, adapter in targets.items():
      kernel = projections[target]["kernel"]
      change = lora.scale * jnp.einsum("lir,lro->lio", adapter["a"], adapter["b"])
      merged = (kernel + change).astype(dtype or kernel.dtype)
      projections[target] = {**projections[target], "kernel": merged}
    layers[parent] = projections
  return {**params, "layers": layers}


def attach_adapters(params: Params, adapters: Params, lora: LoraConfig) -> Params:
  """Parameters whose adapted projections also carry `scale * A` and `B`; nothing is copied.

  Args:
    params, adapters, lora: see `merge_adapters`.
  """
  layers = dict(params["layers"])
  for parent, targets in adapters["layers"].items():
    projections = dict(layers[parent])
    for target, adapter in targets.items():
      scaled = {"a": lora.scale * adapter["a"], "b": adapter["b"]}
      projections[target] = {**projections[target], "adapter": scaled}
    layers[parent] = projections
  return {**params, "layers": layers}


def kernel_shape(config: ModelConfig, target: str) -> tuple[int, int, int]:
  """`(L, in, out)` of a projection.

  Raises:
    ValueError: if the model lacks it.
  """
  shapes = _kernel_shapes(config)
  if target not in shapes:
    raise ValueError(f"{config.architecture} has no projection {target!r} to adapt.")
  return shapes[target]


@functools.lru_cache
def _kernel_shapes(config: ModelConfig) -> dict[str, tuple[int, int, int]]:
  layers = abstract_params(config)["layers"]
  return {
    target: layers[parent][target]["kernel"].shape
    for target, parent in PARENTS.items()
    if target in layers[parent]
  }
