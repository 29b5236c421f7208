"""Sizes: buckets that keep compiled shapes few, and what a group of rollouts costs in memory."""

from __future__ import annotations

from tea_jax.models.config import ModelConfig


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
