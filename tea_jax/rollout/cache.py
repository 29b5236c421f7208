"""Sizes: buckets that keep compiled shapes few, and what a group of rollouts costs in memory."""

from __future__ import annotations

from tea_jax.models.config import ModelConfig

DEFAULT_MEMORY = 2 << 30
"""Bytes for caches and logits of the rows that are decoded together."""


def bucket(size: int, *, smallest: int = 1) -> int:
  """The next of 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, ...: at most half again as large as `size`.

  Args:
    size: what must fit; at least 1.
    smallest: the smallest bucket to use.
  """
  if size < 1:
    raise ValueError(f"size={size} must be at least 1")
  size = max(size, smallest)
  power = 1 << (size - 1).bit_length()
  between = power // 4 * 3
  return between if size <= between else power


def row_bytes(config: ModelConfig, completion_length: int, *, item_size: int) -> int:
  """Bytes that one row takes while decoding: its cache, its logits and their temporaries."""
  cache = 2 * config.num_layers * config.num_kv_heads * config.head_dim * item_size
  return completion_length * (cache + 12) + 3 * 4 * config.vocab_size


def prompt_bytes(config: ModelConfig, prompt_length: int, *, item_size: int) -> int:
  """Bytes of one prompt's shared cache and of its attention scores during prefill."""
  cache = 2 * config.num_layers * config.num_kv_heads * config.head_dim * item_size
  scores = 2 * 4 * config.num_heads * prompt_length
  return prompt_length * (2 * cache + scores)


def batch_shape(
  config: ModelConfig,
  num_rollouts: int,
  *,
  prompt_length: int,
  completion_length: int,
  item_size: int,
  memory: int = DEFAULT_MEMORY,
  max_rows: int | None = None,
) -> tuple[int, int]:
  """(prompts, rollouts of each) of one call that fits: whole groups, or equal parts of one.

  Args:
    config: the model.
    num_rollouts: m.
    prompt_length, completion_length: as compiled.
    item_size: bytes of a number of the compute dtype.
    memory: bytes for caches and logits, of all copies of the model together.
    max_rows: rows decoded at once, instead of what fits into `memory`.

  Raises:
    ValueError: if not even one rollout fits.
  """
  per_row = row_bytes(config, completion_length, item_size=item_size)
  per_prompt = prompt_bytes(config, prompt_length, item_size=item_size)
  if max_rows is not None:
    parts = -(-num_rollouts // max_rows)
    prompts = max(1, max_rows // num_rollouts) if parts == 1 else 1
    return prompts, -(-num_rollouts // parts)
  rows = (memory - per_prompt) // per_row
  if rows < 1:
    raise ValueError(
      f"one rollout needs about {(per_row + per_prompt) / 2**20:.0f} MiB, more than"
      f" memory={memory / 2**20:.0f} MiB; raise sampling.memory_gb or shorten the completions"
    )
  parts = -(-num_rollouts // rows)
  group = per_prompt + num_rollouts * per_row
  return max(1, memory // group) if parts == 1 else 1, -(-num_rollouts // parts)
