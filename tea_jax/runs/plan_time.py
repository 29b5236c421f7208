"""A lower bound of the seconds of a step, from a device's peak arithmetic and memory bandwidth.

A phase takes at least its floating-point operations over the peak, or the bytes that it reads over
the bandwidth. Completions have full length. Rewards, compiling and communication between devices
are not counted.

Axes: P prompts, m rollouts of each, T_p and T_c time.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
from jax.sharding import AbstractMesh

from tea_jax.models.causal_lm import abstract_params
from tea_jax.models.config import ModelConfig
from tea_jax.rollout.cache_growth import cache_sizes
from tea_jax.runs.config import RunConfig
from tea_jax.runs.plan_shapes import DecodeShape, UpdateShape


class StepSeconds(NamedTuple):
  """A lower bound of each phase.

  Attributes:
    rollout, reference, update: seconds.
    tokens: of the step's completions.
  """

  rollout: float
  reference: float
  update: float
  tokens: int

  @property
  def total(self) -> float:
    """Seconds of the step."""
    return self.rollout + self.reference + self.update

  def __str__(self) -> str:
    return (
      f"time of a step, a lower bound: {self.total:.3g} s (rollouts {self.rollout:.3g}, reference "
      f"{self.reference:.3g}, update {self.update:.3g}); {self.tokens:,} completion tokens a step, "
      f"at most {self.tokens / self.total:,.0f} a second; rewards and communication are not counted"
    )


class Work(NamedTuple):
  """Floating-point operations of a forward pass, on all devices that share it.

  Attributes:
    products: of tokens with the weights of all layers.
    attention: of queries with keys and of weights with values.
    head: of tokens with the vocabulary.
  """

  products: float
  attention: float
  head: float


def step_seconds(
  config: RunConfig,
  model: ModelConfig,
  *,
  mesh: AbstractMesh,
  decode: DecodeShape,
  batch: UpdateShape,
  weights: int,
  state: int,
) -> StepSeconds | None:
  """The bound, or None without `logging.peak_teraflops` and `logging.peak_bandwidth`.

  Args:
    config, model: of the run.
    mesh: of its devices.
    decode, batch: the shapes that it compiles.
    weights: bytes of a device's weights while it decodes.
    state: bytes of a device's parameters and optimiser.
  """
  flops = config.logging.peak_teraflops * 1e12
  bandwidth = config.logging.peak_bandwidth * 1e9
  if not (flops or bandwidth):
    return None
  tensor = mesh.shape["tensor"]

  def seconds(work: float, read: float) -> float:
    arithmetic = work / (flops * tensor) if flops else 0.0
    return max(arithmetic, read / bandwidth if bandwidth else 0.0)

  tokens = config.sampling.max_completion_length
  prompts, rows = decode.prompts / decode.shards, decode.rows / decode.shards
  prefill = _work(model, prompts * decode.prompt, decode.prompt, prompts)
  item = 2 if config.model.compute_dtype == "bfloat16" else 4
  place = 2 * item * model.num_layers * model.num_kv_heads * model.head_dim
  # The prompt's last state draws the first token; each later one reads the caches' present size.
  rollout, first = seconds(sum(prefill), weights), 1
  for size in cache_sizes(decode.completion, config.sampling.cache_buckets):
    token = _work(model, rows, decode.prompt + size, rows)
    caches = place * (prompts * decode.prompt + rows * size)
    last = min(size, tokens - 1)
    rollout += max(0, last - first + 1) * seconds(sum(token), weights + caches)
    first = last + 1

  own, width = batch.own_prompts, batch.widths[-1]
  completions = own * batch.rollouts * (width - 1)
  context = batch.prompt + width - 1
  inside = _work(model, own * batch.prompt, batch.prompt, 0)
  after = _work(model, completions, context, own * batch.rollouts * width)
  forward = Work(*(batch.pieces * (a + b) for a, b in zip(inside, after, strict=True)))
  # Backward: the gradient of the inputs, and of the weights unless they are frozen.
  backward = 1 if config.model.lora is not None else 2
  recomputed = config.model.remat == "full"
  update = forward.products * (1 + backward + recomputed)
  update += forward.attention * (3 + (config.model.remat != "none"))
  update += forward.head * (2 + backward)  # the backward pass recomputes the logits
  # Read and written; the reference is read once.
  updates = config.optimizer.updates_per_batch * seconds(update, 2 * state)
  reference = seconds(sum(forward), 0) if config.objective.needs_reference else 0.0
  total = config.data.prompts_per_step * config.sampling.num_rollouts * tokens
  return StepSeconds(decode.calls * rollout, reference, updates, total)


def _work(model: ModelConfig, tokens: float, context: float, scored: float) -> Work:
  """Of `tokens` that see `context` keys each, of which `scored` go through the head."""
  layers = abstract_params(model)["layers"]
  kernels = sum(leaf.size for leaf in jax.tree.leaves(layers) if leaf.ndim > 2)
  per_key = 4 * model.num_layers * model.num_heads * model.head_dim
  return Work(
    2 * kernels * tokens,
    per_key * context * tokens,
    2 * model.vocab_size * model.hidden_size * scored,
  )
