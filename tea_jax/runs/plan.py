"""What a run will take, from shapes alone: parameters, memory of a device, time, compiled shapes.

Memory is within 15 % of XLA's own plan for the update and for the rollouts on a CPU, on one device
and on four (`python -m tests.benchmarks.plan_memory`), but for narrow models under `tensor` (0.84
and 1.18); the process needs about 1 GB more. On a CPU it counts what XLA does there alone, unless
`mesh.memory_gb` says that an accelerator is meant.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh

from tea_jax.models.causal_lm import abstract_params, num_parameters
from tea_jax.models.config import ModelConfig
from tea_jax.models.decode_sharding import DECODE_RULES
from tea_jax.models.lora import init_adapters
from tea_jax.rollout.cache import DEFAULT_MEMORY, bucket, prompt_bytes, row_bytes
from tea_jax.runs.config import RunConfig
from tea_jax.runs.plan_layout import tree_bytes
from tea_jax.runs.plan_reward import reward_bytes, reward_models
from tea_jax.runs.plan_shapes import (
  DecodeShape,
  UpdateShape,
  decode_shape,
  decoding_devices,
  plan_mesh,
  update_shape,
)
from tea_jax.runs.plan_time import StepSeconds, step_seconds
from tea_jax.runs.plan_update import update_bytes
from tea_jax.runtime.memory import device_limit_bytes


class Estimate(NamedTuple):
  """Memory of one device, in bytes, and a bound of a step's time.

  Attributes:
    num_parameters: of the policy.
    num_trainable: of them (or of the adapters) that are trained.
    always: name -> bytes that live for the whole run.
    rollout: name -> bytes while sampling.
    reward: name -> bytes while reward models score.
    update: name -> bytes while updating.
    decode, batch: what will be compiled.
    decode_memory: bytes that rows decoded together may take.
    limit: bytes that a device has, None where that is not known.
    seconds: lower bound of a step's time, None without the peaks of a device.
    not_counted: reward models whose config is not at hand.
    cpu: the plan is XLA's for a CPU.
  """

  num_parameters: int
  num_trainable: int
  always: dict[str, int]
  rollout: dict[str, int]
  reward: dict[str, int]
  update: dict[str, int]
  decode: DecodeShape
  batch: UpdateShape
  decode_memory: int
  limit: int | None
  seconds: StepSeconds | None
  not_counted: tuple[str, ...]
  cpu: bool

  @property
  def peak(self) -> int:
    """Bytes of the fullest phase."""
    phases = (self.rollout, self.reward, self.update)
    return sum(self.always.values()) + max(sum(phase.values()) for phase in phases)

  @property
  def shapes(self) -> dict[str, str]:
    """What will be compiled, name -> shapes."""
    return {
      "prefill": f"{self.decode.prompts} prompts x {self.decode.prompt} tokens",
      "decode": str(self.decode),
      "update": str(self.batch),
    }


_MOMENTS = {"adamw": 2, "lion": 1, "sgd": 1}


def estimate_memory(
  config: RunConfig, model: ModelConfig, *, prompt_length: int | None = None, num_devices: int = 1
) -> Estimate:
  """Estimates a run without loading anything.

  Args:
    config: of the run.
    model: the policy's shape.
    prompt_length: longest prompt in tokens; `data.max_prompt_length` if not known.
    num_devices: of the mesh.
  """
  mesh = plan_mesh(config, num_devices)
  prompt = bucket(prompt_length or config.data.max_prompt_length, smallest=16)
  cpu = jax.default_backend() == "cpu" and not config.mesh.memory_gb
  sizes = _sizes(config, model, mesh)
  limit = int(config.mesh.memory_gb * 2**30) or device_limit_bytes()
  memory = _decode_memory(config, sizes, limit)
  item = _item(config.model.compute_dtype)
  devices, _ = decoding_devices(config, model, mesh)
  decode = decode_shape(
    config, model, prompt=prompt, item=item, memory=memory * devices, devices=devices
  )
  shards = mesh.shape["data"] * mesh.shape["fsdp"]
  batch = update_shape(config, prompt=prompt, shards=shards)
  # Where devices do not divide the rows, each decodes all.
  cache = row_bytes(model, decode.completion, item_size=item) * decode.rows
  cache += prompt_bytes(model, prompt, item_size=item) * decode.prompts
  rollout = {**sizes.rollout, "caches and logits": cache // decode.shards}
  if cpu and item == 2:
    rollout["copies (CPU)"] = 4 * sizes.num_parameters // mesh.shape["tensor"]
  weights, scoring, not_counted = reward_bytes(
    config.reward, mesh, tokens=prompt + config.sampling.max_completion_length
  )
  return Estimate(
    num_parameters=sizes.num_parameters,
    num_trainable=sizes.num_trainable,
    always={**sizes.always, **weights},
    rollout=rollout,
    reward=scoring,
    update=update_bytes(
      config,
      model,
      mesh,
      batch,
      gradient=sizes.trained,
      moments=sizes.always["optimiser"],
      cpu=cpu,
    ),
    decode=decode,
    batch=batch,
    decode_memory=memory,
    limit=limit,
    seconds=step_seconds(
      config,
      model,
      mesh=mesh,
      decode=decode,
      batch=batch,
      weights=sizes.rollout["decoding weights"],
      state=sizes.always["parameters"] + sizes.always["optimiser"],
    ),
    not_counted=not_counted,
    cpu=cpu,
  )


def decode_memory(config: RunConfig, model: ModelConfig) -> int:
  """Bytes of each copy of the model for the rows that are decoded together.

  `sampling.memory_gb`, or else most of what an accelerator has left after the run's parameters,
  optimiser and reference: half of that where a reward model shares the device. 2 GiB on a CPU.

  Args:
    config, model: see `estimate_memory`.
  """
  sizes = _sizes(config, model, plan_mesh(config, jax.device_count()))
  return _decode_memory(config, sizes, device_limit_bytes())


class _Sizes(NamedTuple):
  """What no shape of a batch decides."""

  num_parameters: int
  num_trainable: int
  trained: int  # bytes of the trained parameters, float32
  always: dict[str, int]
  rollout: dict[str, int]


def _sizes(config: RunConfig, model: ModelConfig, mesh: AbstractMesh) -> _Sizes:
  shapes, lora = abstract_params(model), config.model.lora
  item, stored = map(_item, (config.model.compute_dtype, config.model.param_dtype))
  count, whole = num_parameters(shapes), tree_bytes(shapes, model, mesh, item=4)
  trainable, trained = count, whole
  if lora is not None:
    trainable = num_parameters(
      jax.eval_shape(lambda: init_adapters(model, lora, jax.random.key(0)))
    )
    trained = 4 * trainable  # adapters lie on every device
  moments = _MOMENTS[config.optimizer.name]
  if config.optimizer.name == "sgd" and config.optimizer.beta1 == 0:
    moments = 0
  always = {"parameters": stored * whole // 4, "optimiser": moments * trained}
  if lora is not None:
    always["adapters"] = trained
  elif config.objective.needs_reference:
    always["reference"] = whole

  _, copied = decoding_devices(config, model, mesh)

  def is_copied(path: tuple[str, ...]) -> bool:
    # One device decodes with the table that it trains, if that has the same precision.
    return copied or item != stored or path[0] != "embed"

  rules = {"rules": DECODE_RULES} if copied else {}
  rollout = {
    "decoding weights": tree_bytes(shapes, model, mesh, item=item, counts=is_copied, **rules)
  }
  if lora is not None:
    rollout["merged weights"] = tree_bytes(
      shapes,
      model,
      mesh,
      item=max(item, stored),
      counts=lambda path: path[-2] in lora.targets and path[-1] == "kernel",
    )
  return _Sizes(count, trainable, trained, always, rollout)


def _item(dtype: str) -> int:
  return jnp.dtype(dtype).itemsize


def _decode_memory(config: RunConfig, sizes: _Sizes, limit: int | None) -> int:
  if config.sampling.memory_gb or limit is None:
    return int(config.sampling.memory_gb * 2**30) or DEFAULT_MEMORY
  left = limit - sum(sizes.always.values()) - sum(sizes.rollout.values())
  share = 0.4 if reward_models(config.reward) else 0.8
  return max(DEFAULT_MEMORY // 8, int(left * share))


def describe(estimate: Estimate) -> str:
  """A few lines for people."""

  def phase(title: str, parts: dict[str, int]) -> list[str]:
    inside = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in parts.items())
    return [f"  {title}: {sum(parts.values()) / 1e9:.2f} GB ({inside})"] if parts else []

  where = " on this CPU (--mesh.memory-gb plans for an accelerator)" if estimate.cpu else ""
  return "\n".join(
    [
      f"parameters: {estimate.num_parameters:,} ({estimate.num_trainable:,} trained)",
      f"memory of a device, estimated: {estimate.peak / 1e9:.2f} GB at the peak{where}",
      *phase("always", estimate.always),
      *phase("rollouts", estimate.rollout),
      *phase("scoring", estimate.reward),
      *phase("update", estimate.update),
      *(
        f"  not counted: the reward model {name}, whose config is not on this machine"
        for name in estimate.not_counted
      ),
      *([str(estimate.seconds)] if estimate.seconds else []),
      "compiled shapes:",
      *(f"  {name}: {shape}" for name, shape in estimate.shapes.items()),
    ]
  )
