"""What the benchmarks share: the model's shape, timing, and peak memory of a process."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from tea_jax.models.config import ModelConfig

SMOLLM2 = ModelConfig(
  architecture="Llama",
  vocab_size=49152,
  hidden_size=576,
  intermediate_size=1536,
  num_layers=30,
  num_heads=9,
  num_kv_heads=3,
  head_dim=64,
  max_positions=8192,
  rope_theta=100000.0,
  tie_embeddings=True,
)

LLAMA_1B = ModelConfig(
  architecture="Llama",
  vocab_size=128256,
  hidden_size=2048,
  intermediate_size=8192,
  num_layers=16,
  num_heads=32,
  num_kv_heads=8,
  head_dim=64,
  max_positions=131072,
  rope_theta=500000.0,
  tie_embeddings=True,
)
"""Llama-3.2-1B, but for the scaling of its rotary frequencies."""


def torch_model(dtype: str):
  """The same shape in `transformers`, with random weights."""
  import torch
  from transformers import LlamaConfig, LlamaForCausalLM

  config = LlamaConfig(
    vocab_size=SMOLLM2.vocab_size,
    hidden_size=SMOLLM2.hidden_size,
    intermediate_size=SMOLLM2.intermediate_size,
    num_hidden_layers=SMOLLM2.num_layers,
    num_attention_heads=SMOLLM2.num_heads,
    num_key_value_heads=SMOLLM2.num_kv_heads,
    head_dim=SMOLLM2.head_dim,
    max_position_embeddings=SMOLLM2.max_positions,
    rope_theta=SMOLLM2.rope_theta,
    tie_word_embeddings=True,
    bos_token_id=None,
    eos_token_id=None,
    pad_token_id=0,
  )
  return LlamaForCausalLM(config).to(getattr(torch, dtype))


class Times(NamedTuple):
  """Seconds of each repetition."""

  wall: list[float]
  processor: list[float]

  def __str__(self) -> str:
    wall = (
      f"median {statistics.median(self.wall):.2f} s ({min(self.wall):.2f}-{max(self.wall):.2f})"
    )
    return f"{wall}, processor time {statistics.median(self.processor):.2f} s"


def seconds(runs: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, Times]:
  """Times of each side, in turns, so that a busy machine slows all alike.

  JAX compiles in a run of its own first; torch has nothing to compile.
  """
  times = {side: Times([], []) for side in runs}
  for side, run in runs.items():
    if side != "torch":
      run()
  for _ in range(repeats):
    for side, run in runs.items():
      wall, processor = time.perf_counter(), time.process_time()
      run()
      times[side].wall.append(time.perf_counter() - wall)
      times[side].processor.append(time.process_time() - processor)
  return times


def peak_gib() -> float:
  """Largest resident memory of this process so far."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
