"""A base policy that a trainer's example starts with in a second: a Hugging Face folder."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import numpy as np

from tea_jax.models.causal_lm import init_params
from tea_jax.models.config import ModelConfig
from tea_jax.models.weights import huggingface
from tea_jax.models.weights.load import load_policy
from tests.integrations.tiny_torch import letter_tokenizer


def tiny_base(folder: pathlib.Path, tokenizer: Any = None) -> str:
  """Writes a Llama of two layers with random weights, over letters or another tokenizer."""
  tokenizer = tokenizer or letter_tokenizer()
  config = ModelConfig(
    architecture="Llama",
    vocab_size=len(tokenizer),
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_positions=128,
    rope_theta=10_000.0,
    tie_embeddings=True,
    eos_token_ids=(tokenizer.eos_token_id,),
    bos_token_id=tokenizer.bos_token_id,
    pad_token_id=tokenizer.pad_token_id,
  )
  params = init_params(config, jax.random.key(0))
  huggingface.save_pretrained(folder, config, params, tokenizer)
  return str(folder)


def distance(folder: Any, base: Any) -> float:
  """Largest difference between the weights of two folders.

  Raises:
    AssertionError: if a weight is not finite.
  """
  pairs = zip(*(jax.tree.leaves(load_policy(str(f)).params) for f in (folder, base)), strict=True)
  moved = [np.abs(np.asarray(a) - np.asarray(b)).max() for a, b in pairs]
  assert np.isfinite(moved).all()
  return float(max(moved))


def evaluate(folder: str, base: str, output: pathlib.Path) -> str:
  """The report of `experiments.evaluate` on two folders."""
  from experiments import evaluate as script

  words = f"base={base} trained={folder} --preset quickstart --output {output} --no-figures"
  sizes = (
    "--data.max-prompt-length 200 --sampling.num-rollouts 8 --sampling.max-completion-length 8"
  )
  few = "--evaluation.num-prompts 2 --evaluation.num-samples 8"
  assert script.main(f"{words} {sizes} {few}".split()) == 0
  return (output / "report.md").read_text()
