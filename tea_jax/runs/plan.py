"""What a run will take, from shapes alone: parameters, memory of a device, compiled shapes.

An estimate of the policy's part (a reward model comes on top): it counts arrays that must exist at
the same time, not what a compiler adds. XLA's own plan for the update of a 135M model was 5 %
larger with recomputation and 15 % larger without; the process needs about 1 GB more.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax

from tea_jax.models.causal_lm import abstract_params, num_parameters
from tea_jax.models.config import ModelConfig
from tea_jax.models.decode_sharding import copies_weights
from tea_jax.models.fused_attention import KEY_BLOCK
from tea_jax.models.fused_head import default_chunk
from tea_jax.models.lora import init_adapters
from tea_jax.rollout.cache import DEFAULT_MEMORY, batch_shape, bucket, prompt_bytes, row_bytes
from tea_jax.runs.config import RunConfig
from tea_jax.runs.length_cut import bucket_widths, length_cut
from tea_jax.runtime.memory import device_limit_bytes


class Estimate(NamedTuple):
  """Memory of one device, in bytes.

  Attributes:
    num_parameters: of the policy.
    num_trainable: of them (or of the adapters) that are trained.
    always: name -> bytes that live for the whole run.
    rollout: name -> bytes while sampling.
    update: name -> bytes while updating.
    shapes: what will be compiled, name -> shapes.
    decode_memory: bytes that rows decoded together may take.
  """

  num_parameters: int
  num_trainable: int
  always: dict[str, int]
  rollout: dict[str, int]
  update: dict[str, int]
  shapes: dict[str, str]
  decode_memory: int

  @property
  def peak(self) -> int:
    """Bytes of the fuller of the two phases."""
    phases = (sum(self.rollout.values()), sum(self.update.values()))
    return sum(self.always.values()) + max(phases)


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
  prompt = bucket(prompt_length or config.data.max_prompt_length, smallest=16)
  completion = config.sampling.max_completion_length
  prompts, group = config.data.prompts_per_step, config.sampling.num_rollouts
  item, stored = (
    2 if dtype == "bfloat16" else 4
    for dtype in (config.model.compute_dtype, config.model.param_dtype)
  )
  total = num_parameters(abstract_params(model))
  lora = config.model.lora
  trained = total
  if lora is not None:
    trained = num_parameters(jax.eval_shape(lambda: init_adapters(model, lora, jax.random.key(0))))
  split = config.mesh.fsdp * config.mesh.tensor
  copies = config.mesh.data if config.mesh.data > 0 else max(1, num_devices // split)
  shards = copies * config.mesh.fsdp

  moments = _MOMENTS[config.optimizer.name]
  if config.optimizer.name == "sgd" and config.optimizer.beta1 == 0:
    moments = 0
  always = {"parameters": stored * total, "optimiser": 4 * trained * moments}
  if lora is not None:
    always["adapters"] = 4 * trained
  elif config.objective.needs_reference:
    always["reference"] = 4 * total
  always = {name: size // split for name, size in always.items()}

  # Weights are copied to the devices of `fsdp` where they fit, and rows are then split over them.
  copied = num_devices > 1 and copies_weights(model, config.model.compute_dtype, config.mesh.tensor)
  decoding = copies * (config.mesh.fsdp if copied else 1)
  rollout = {"decoding weights": item * total // (config.mesh.tensor if copied else split)}
  if lora is not None:
    rollout["merged weights"] = max(item, stored) * total // split
  memory = _decode_memory(config, {**always, **rollout}) * decoding
  decoded = bucket(completion, smallest=8)
  height, part = batch_shape(
    model, group, prompt_length=prompt, completion_length=decoded, item_size=item, memory=memory
  )
  height = bucket(min(height, prompts))
  cache = row_bytes(model, decoded, item_size=item) * height * part
  cache += prompt_bytes(model, prompt, item_size=item) * height
  if height * part % decoding == 0:
    cache //= decoding
  rollout["caches and logits"] = cache

  buckets = config.optimizer.length_buckets
  micro = config.optimizer.micro_batch_rollouts or prompts * group
  units, unit = max(1, micro // group), min(micro, group)
  if buckets > 1:
    units, unit = length_cut(
      prompts, group, config.optimizer.micro_batch_rollouts, buckets, shards=shards
    )
    micro = units * unit
  width = math.ceil(micro / min(shards, micro))
  own_prompts = max(1, width // unit)
  tokens = own_prompts * prompt + width * completion
  update = {
    "gradient": 4 * trained // split,
    "activations": _activation_bytes(config, model, tokens, prompt + completion, width, item),
    "head": 3 * 4 * default_chunk(width * completion, model.vocab_size) * model.vocab_size,
  }
  if micro < prompts * group:
    update["gradient sum"] = 4 * trained // split
  widths = " or ".join(map(str, bucket_widths(completion, buckets)))
  shapes = {
    "prefill": f"{height} prompts x {prompt} tokens",
    "decode": f"{height * part} rows x {decoded} tokens",
    "update": f"{prompts * group // micro} x ({units} prompts x {prompt} tokens, "
    f"{unit} rollouts each x {widths} tokens)",
  }
  return Estimate(total, trained, always, rollout, update, shapes, memory // decoding)


def decode_memory(config: RunConfig, model: ModelConfig) -> int:
  """Bytes of each copy of the model for the rows that are decoded together.

  `sampling.memory_gb`, or else most of what an accelerator has left after the run's parameters,
  optimiser and reference: half of that where a reward model shares the device. 2 GiB on a CPU.

  Args:
    config, model: see `estimate_memory`.
  """
  return estimate_memory(config, model, num_devices=jax.device_count()).decode_memory


def _decode_memory(config: RunConfig, taken: dict[str, int]) -> int:
  limit = device_limit_bytes()
  if config.sampling.memory_gb or limit is None:
    return int(config.sampling.memory_gb * 2**30) or DEFAULT_MEMORY
  reward_model = any("/" in name and ":" not in name for name in config.reward.functions)
  left = limit - sum(taken.values())
  return max(DEFAULT_MEMORY // 8, int(left * (0.4 if reward_model else 0.8)))


def _activation_bytes(
  config: RunConfig, model: ModelConfig, tokens: int, context: int, rows: int, item: int
) -> int:
  """What the backward pass keeps of `tokens` tokens."""
  heads, inner = model.num_heads * model.head_dim, model.intermediate_size
  kv_heads = model.num_kv_heads * model.head_dim
  linear = 2 * model.hidden_size + 2 * heads + 2 * kv_heads + 2 * inner
  everything = linear + 4 * model.hidden_size + 2 * inner
  if config.model.attention == "fused":
    context = min(context, KEY_BLOCK)
  scores = 2 * model.num_heads * context
  layer = tokens * item * (everything + scores)
  kept = tokens * item * model.hidden_size
  if config.model.remat == "dots":
    kept += tokens * item * linear
  return model.num_layers * (layer if config.model.remat == "none" else kept) + layer


def describe(estimate: Estimate) -> str:
  """A few lines for people."""

  def phase(title: str, parts: dict[str, int]) -> list[str]:
    inside = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in parts.items())
    return [f"  {title}: {sum(parts.values()) / 1e9:.2f} GB ({inside})"]

  return "\n".join(
    [
      f"parameters: {estimate.num_parameters:,} ({estimate.num_trainable:,} trained)",
      f"memory of a device, estimated: {estimate.peak / 1e9:.2f} GB at the peak",
      *phase("always", estimate.always),
      *phase("rollouts", estimate.rollout),
      *phase("update", estimate.update),
      "compiled shapes:",
      *(f"  {name}: {shape}" for name, shape in estimate.shapes.items()),
    ]
  )
