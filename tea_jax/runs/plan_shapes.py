"""The shapes that a run compiles, and how many of their rows one device computes.

Axes: P prompts, m rollouts of each, T_p and T_c time.
"""

from __future__ import annotations

from typing import NamedTuple

from jax.sharding import AbstractMesh

from tea_jax.models.config import ModelConfig
from tea_jax.models.decode_sharding import copies_weights
from tea_jax.models.sharding import MESH_AXES
from tea_jax.rollout.cache import batch_shape, bucket
from tea_jax.runs.config import RunConfig
from tea_jax.runs.group_cut import micro_batch_shape, spread_factor
from tea_jax.runs.length_cut import bucket_widths, length_cut


class DecodeShape(NamedTuple):
  """One call of the sampler.

  Attributes:
    prompts: prefilled together.
    rollouts: of each.
    prompt, completion: T_p and T_c.
    shards: parts into which devices split the rows; 1 where they all decode the same.
    calls: that make up a step.
  """

  prompts: int
  rollouts: int
  prompt: int
  completion: int
  shards: int
  calls: int

  @property
  def rows(self) -> int:
    """Decoded together, on all devices."""
    return self.prompts * self.rollouts

  def __str__(self) -> str:
    return f"{self.rows} rows x {self.completion} tokens"


class UpdateShape(NamedTuple):
  """One micro-batch.

  Attributes:
    pieces: micro-batches of a step.
    prompts: of a micro-batch; a group that is cut counts for each of its parts.
    rollouts: of each.
    prompt: T_p.
    widths: T_c, in as many widths as are compiled.
    shards: parts into which devices split the prompts; 1 where every device computes all.
  """

  pieces: int
  prompts: int
  rollouts: int
  prompt: int
  widths: tuple[int, ...]
  shards: int

  @property
  def own_prompts(self) -> int:
    """Prompts of a micro-batch on one device."""
    return self.prompts // self.shards

  def __str__(self) -> str:
    widths = " or ".join(map(str, self.widths))
    return (
      f"{self.pieces} x ({self.prompts} prompts x {self.prompt} tokens, "
      f"{self.rollouts} rollouts each x {widths} tokens)"
    )


def plan_mesh(config: RunConfig, num_devices: int) -> AbstractMesh:
  """The mesh of a run, on devices that need not be there.

  Args:
    config: of the run.
    num_devices: what `mesh.data = -1` divides.
  """
  mesh = config.mesh
  data = mesh.data if mesh.data > 0 else max(1, num_devices // (mesh.fsdp * mesh.tensor))
  return AbstractMesh((data, mesh.fsdp, mesh.tensor), MESH_AXES)


def decoding_devices(config: RunConfig, model: ModelConfig, mesh: AbstractMesh) -> tuple[int, bool]:
  """(parts into which rows are split, whether each device of `fsdp` has a copy of the weights)."""
  copied = mesh.size > 1 and copies_weights(model, config.model.compute_dtype, config.mesh.tensor)
  return mesh.shape["data"] * (mesh.shape["fsdp"] if copied else 1), copied


def decode_shape(
  config: RunConfig, model: ModelConfig, *, prompt: int, item: int, memory: int, devices: int
) -> DecodeShape:
  """The sampler's call.

  Args:
    config, model: of the run.
    prompt: T_p.
    item: bytes of a number of the compute dtype.
    memory: bytes for the rows of all devices together.
    devices: parts into which rows are split where they divide.
  """
  prompts, group = config.data.prompts_per_step, config.sampling.num_rollouts
  completion = bucket(config.sampling.max_completion_length, smallest=8)
  height, part = batch_shape(
    model, group, prompt_length=prompt, completion_length=completion, item_size=item, memory=memory
  )
  calls = -(-prompts // height) * -(-group // part)
  height = bucket(min(height, prompts))
  shards = devices if height * part % devices == 0 else 1
  return DecodeShape(height, part, prompt, completion, shards, calls)


def update_shape(config: RunConfig, *, prompt: int, shards: int) -> UpdateShape:
  """The update's micro-batch.

  Args:
    config: of the run.
    prompt: T_p.
    shards: parts into which the devices split prompts where they divide.
  """
  prompts, group = config.data.prompts_per_step, config.sampling.num_rollouts
  total, optimizer = prompts * group, config.optimizer
  micro, buckets = optimizer.micro_batch_rollouts, optimizer.length_buckets
  if buckets > 1:
    height, width = length_cut(prompts, group, micro, buckets, shards=shards)
  else:
    parts = spread_factor(prompts, group, shards)
    height, width = prompts * parts, group // parts
    if 0 < micro < total:
      height, width = micro_batch_shape(height, width, micro, shards=shards)
  return UpdateShape(
    pieces=total // (height * width),
    prompts=height,
    rollouts=width,
    prompt=prompt,
    widths=bucket_widths(config.sampling.max_completion_length, buckets),
    shards=shards if height % shards == 0 else 1,
  )
