"""The dry run's memory of a device beside XLA's own plan for the update and the rollouts of a step.

Run: python -m tests.benchmarks.plan_memory [--cells float32 lora] [--phases update rollouts]

Shapes alone are compiled, in a grid of precision, adapters, recomputation, micro-batches and four
forced CPU devices; no weights exist. XLA's figure for the update is its arguments + outputs -
donated + temporaries; for the rollouts, what prefill leaves and the fuller of the two programs'
temporaries, beside all that lives anyway. XLA multiplies bfloat16 matrices in float32 on a CPU, and
the plan for a CPU counts the float32 copies; `mesh.memory_gb` plans for a device without them.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tea_jax.models.causal_lm import abstract_params
from tea_jax.models.config import ModelConfig
from tea_jax.models.lora import init_adapters
from tea_jax.models.policy import Policy
from tea_jax.models.sharding import make_mesh, param_shardings
from tea_jax.rollout.types import Rollouts
from tea_jax.runs.build import sampler_config
from tea_jax.runs.config import RunConfig
from tea_jax.runs.groups import DataConfig, MeshConfig, PolicyConfig, RolloutConfig
from tea_jax.runs.optimizer import OptimizerConfig
from tea_jax.runs.plan import Estimate, estimate_memory
from tea_jax.training.learner import Learner, make_learner, place
from tea_jax.training.update import Batch
from tests.training import forced_devices

MODEL = dataclasses.replace(
  forced_devices.MODEL,
  vocab_size=16384,
  hidden_size=512,
  intermediate_size=1536,
  num_layers=6,
  num_heads=8,
  head_dim=64,
  max_positions=2048,
)
# Without LLVM's optimisation a compile takes half as long, and plans the same memory.
_QUICK = {"xla_backend_optimization_level": 0}
Changes = dict[str, dict[str, Any]]
NONE, DOTS = {"model": {"remat": "none"}}, {"model": {"remat": "dots"}}
LORA, HALF = {"model": {"lora_rank": 8}}, {"model": {"compute_dtype": "bfloat16"}}
MICRO = {"optimizer": {"micro_batch_rollouts": 16}}
DATA, FSDP = {"mesh": {"data": 4}}, {"mesh": {"fsdp": 4}}
LONG = {
  "data": {"prompts_per_step": 1, "max_prompt_length": 128},
  "sampling": {"num_rollouts": 8, "max_completion_length": 320},
}
CELLS: dict[str, list[Changes]] = {
  "float32": [],
  "float32, dots": [DOTS],
  "float32, none": [NONE],
  "float32, micro-batches": [MICRO],
  "float32, micro-batches, none": [MICRO, NONE],
  "float32, long": [LONG],
  "float32, long, none": [LONG, NONE],
  "float32, long, fused": [LONG, {"model": {"attention": "fused"}}],
  "bfloat16": [HALF],
  "bfloat16, none": [HALF, NONE],
  "bfloat16, micro-batches": [HALF, MICRO],
  "lora": [LORA],
  "lora, none": [LORA, NONE],
  "lora, micro-batches": [LORA, MICRO],
  "lora on bfloat16": [LORA, HALF, {"model": {"param_dtype": "bfloat16"}}],
  "data=4": [DATA],
  "data=4, none": [DATA, NONE],
  "data=4, micro-batches": [DATA, MICRO],
  "fsdp=4": [FSDP],
  "fsdp=4, none": [FSDP, NONE],
  "fsdp=4, micro-batches": [FSDP, MICRO],
  "fsdp=4, lora": [FSDP, LORA],
  "fsdp=4, bfloat16": [FSDP, HALF],
  "tensor=2": [{"mesh": {"tensor": 2}}],
  "tensor=4": [{"mesh": {"tensor": 4}}],
}


def run_config(changes: list[Changes], **base: dict[str, Any]) -> RunConfig:
  """4 prompts of 64 tokens x 16 rollouts of 64 tokens, unless `base` or `changes` say else."""
  kinds = {
    "data": (DataConfig, {"prompts_per_step": 4, "max_prompt_length": 64}),
    "sampling": (RolloutConfig, {"num_rollouts": 16, "max_completion_length": 64}),
    "model": (PolicyConfig, {}),
    "optimizer": (OptimizerConfig, {}),
    "mesh": (MeshConfig, {"data": 1}),
  }
  groups = {}
  for name, (kind, fields) in kinds.items():
    merged = {**fields, **base.get(name, {})}
    for change in changes:
      merged |= change.get(name, {})
    groups[name] = kind(**merged)
  return RunConfig(**groups)


def plan(config: RunConfig, model: ModelConfig) -> Estimate:
  """The dry run's estimate, of the prompts' padded width."""
  return estimate_memory(config, model, prompt_length=config.data.max_prompt_length)


def update_bytes(config: RunConfig, model: ModelConfig) -> int:
  """What XLA plans for one device while it updates."""
  learner, trainable, state, frozen = _learner(config, model)
  scalar = np.float32(0)
  lowered = learner.update.lower(trainable, state, frozen, make_batch(config), scalar, scalar)
  sizes = lowered.compile(_QUICK).memory_analysis()
  return (
    sizes.argument_size_in_bytes
    + sizes.output_size_in_bytes
    - sizes.alias_size_in_bytes
    + sizes.temp_size_in_bytes
  )


def rollout_bytes(config: RunConfig, model: ModelConfig, estimate: Estimate) -> int:
  """The same while it decodes; what lives anyway is as the estimate counts it, exactly."""
  learner, trainable, _, frozen = _learner(config, model)
  engine, mesh = learner.engine, _mesh(config)
  params = jax.eval_shape(learner.merge, trainable, frozen) if frozen else trainable
  before, weights = jax.eval_shape(engine.weights, params)
  kept = {"embed"} if mesh is None and weights["embed"] == params["embed"] else set()
  if mesh is not None:
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    weights = before = _placed(weights, jax.tree.map(lambda _: everywhere, weights))
  shape = estimate.decode
  start, advance = engine._compiled(shape.rows)
  arguments = (
    before,
    weights,
    *(_shapes((shape.prompts, shape.prompt), (shape.prompts,))),
    jax.random.key(0),
    *(_shapes((shape.prompts,), (shape.rollouts,))),
    jax.ShapeDtypeStruct((shape.rows,), bool),
  )
  options = {"rollouts": shape.rollouts, "length": shape.completion, "places": shape.completion}
  lowered = start.lower(*arguments, **options)
  prefill = lowered.compile(_QUICK)
  left = _placed(lowered.out_info, prefill.output_shardings)
  lowered = advance.lower(weights, left[0], arguments[3], *left[1:], np.int32(9))
  decode = lowered.compile(_QUICK)
  first, then = prefill.memory_analysis(), decode.memory_analysis()
  own = sum(
    math.prod(leaf.shape) * leaf.dtype.itemsize
    for name in set(weights) - kept
    for leaf in jax.tree.leaves(weights[name])
  )
  always = sum(estimate.always.values()) + estimate.rollout.get("merged weights", 0)
  temporary = max(first.temp_size_in_bytes, then.temp_size_in_bytes)
  return always + own + first.output_size_in_bytes + temporary


def _learner(config: RunConfig, model: ModelConfig) -> tuple[Learner, Any, Any, Any]:
  """The learner, and shapes of what it trains, of its optimiser and of what it does not train."""
  mesh, options = _mesh(config), config.model
  names = ("compute_dtype", "remat", "scan_layers", "attention")
  learner = make_learner(
    Policy(model, {}, **{name: getattr(options, name) for name in names}),
    sampler=sampler_config(config.sampling),
    objective=config.objective,
    optimizer=config.optimizer,
    lora=options.lora,
    prompt_length=config.data.max_prompt_length,
    mesh=mesh,
  )
  shapes, dtype = abstract_params(model), jnp.dtype(options.param_dtype)
  params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), shapes)
  params = _placed(params, param_shardings(shapes, model, mesh))
  trainable, frozen, lora = params, {}, options.lora
  if lora is not None:
    frozen = params
    trainable = jax.eval_shape(lambda: init_adapters(model, lora, jax.random.key(0)))
  places = learner.shardings or (None, None)
  trainable = _placed(trainable, places[0])
  state = _placed(jax.eval_shape(learner.init_optimizer, trainable), places[1])
  return learner, trainable, state, frozen


def _placed(shapes: Any, shardings: Any) -> Any:
  if shardings is None:
    return shapes

  def put(leaf: Any, place: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

  return jax.tree.map(put, shapes, shardings)


def _shapes(*shapes: tuple[int, ...]) -> list[jax.ShapeDtypeStruct]:
  return [jax.ShapeDtypeStruct(shape, np.int32) for shape in shapes]


def _mesh(config: RunConfig) -> jax.sharding.Mesh | None:
  sizes = {name: getattr(config.mesh, name) for name in ("data", "fsdp", "tensor")}
  count = math.prod(sizes.values())
  return None if count == 1 else make_mesh(**sizes, devices=jax.devices()[:count])


def make_batch(config: RunConfig) -> Batch:
  prompts, group = config.data.prompts_per_step, config.sampling.num_rollouts
  shape = (prompts, group, config.sampling.max_completion_length)
  rollouts = Rollouts(
    prompt_tokens=np.zeros((prompts, config.data.max_prompt_length), np.int32),
    prompt_lengths=np.ones((prompts,), np.int32),
    completion_tokens=np.zeros(shape, np.int32),
    completion_lengths=np.ones(shape[:2], np.int32),
    finished=np.ones(shape[:2], bool),
    logprobs=np.zeros(shape, np.float32),
    sampling_logprobs=np.zeros(shape, np.float32),
  )
  where = np.ones(shape[:2], bool)
  return place(Batch(rollouts, np.zeros(shape[:2], np.float32), where), _mesh(config))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS))
  parser.add_argument("--phases", nargs="+", choices=("update", "rollouts"), default=["update"])
  arguments = parser.parse_args()
  for name in arguments.cells:
    config = run_config(CELLS[name])
    estimate = plan(config, MODEL)
    always = sum(estimate.always.values())
    for phase in arguments.phases:
      if phase == "update":
        planned, xla = sum(estimate.update.values()), update_bytes(config, MODEL)
      else:
        planned, xla = sum(estimate.rollout.values()), rollout_bytes(config, MODEL, estimate)
      planned += always
      print(
        f"{name:30} {phase:9} plan {planned / 1e6:7.1f} MB, XLA {xla / 1e6:7.1f} MB, "
        f"ratio {planned / xla:.2f}",
        flush=True,
      )


if __name__ == "__main__":
  os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=4")
  main()
