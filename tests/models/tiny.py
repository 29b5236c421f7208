"""Small random models that exercise every option of the decoder."""

from __future__ import annotations

import dataclasses

import jax
import pytest

from tea_jax.models.causal_lm import init_params
from tea_jax.models.config import ModelConfig
from tea_jax.models.policy import Policy

LLAMA = ModelConfig(
  architecture="Llama",
  vocab_size=97,
  hidden_size=32,
  intermediate_size=48,
  num_layers=2,
  num_heads=4,
  num_kv_heads=2,
  head_dim=8,
  max_positions=64,
  tie_embeddings=True,
)
QWEN = dataclasses.replace(
  LLAMA,
  architecture="Qwen3",
  tie_embeddings=False,
  query_key_norm=True,
  attention_bias=True,
  sliding_window=5,
)
GPT2 = dataclasses.replace(
  LLAMA,
  architecture="GPT2",
  norm="layer",
  position="learned",
  gated_mlp=False,
  mlp_bias=True,
  attention_bias=True,
  output_bias=True,
  activation="gelu_tanh",
  num_kv_heads=4,
)
GEMMA = dataclasses.replace(
  LLAMA,
  architecture="Gemma",
  norm_offset=1.0,
  embedding_scale=32**0.5,
  activation="gelu_tanh",
  num_kv_heads=1,
)
CONFIGS = {"llama": LLAMA, "qwen": QWEN, "gpt2": GPT2, "gemma": GEMMA}
# For tests that compile much: one family, the others when slow.
COSTLY = (
  "llama",
  *(pytest.param(name, marks=pytest.mark.slow) for name in ("qwen", "gpt2", "gemma")),
)


def tiny_policy(config: ModelConfig = LLAMA, *, seed: int = 0, sharpness: float = 5.0, **options):
  """A policy whose distributions are far from uniform, and whose biases are not zero."""
  params = init_params(config, jax.random.key(seed))
  leaves, structure = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
  noisy = [
    leaf * (sharpness if leaf.ndim == 3 or leaf.shape[0] == config.vocab_size else 1.0)
    + 0.05 * jax.random.normal(key, leaf.shape)
    for leaf, key in zip(leaves, keys, strict=True)
  ]
  return Policy(config, jax.tree.unflatten(structure, noisy), **options)
