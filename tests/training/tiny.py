"""A decoder of a few thousand parameters, its tokenizer, prompts and reward: runs in seconds."""

from __future__ import annotations

import dataclasses
import io
import json
import pathlib

import jax
import numpy as np
import tokenizers
from rich.console import Console
from transformers import PreTrainedTokenizerFast

from tea_jax.advantages import AdvantageSpec
from tea_jax.data import Prompt
from tea_jax.models.causal_lm import init_params
from tea_jax.models.config import ModelConfig
from tea_jax.models.policy import Policy
from tea_jax.runs.config import RunConfig
from tea_jax.runs.groups import (
  CheckpointConfig,
  DataConfig,
  LoggingConfig,
  RolloutConfig,
  ValidationConfig,
)
from tea_jax.runs.optimizer import OptimizerConfig
from tea_jax.training.loop import TrainResult, train

WORDS = ["<end>", "<unknown>", *(f"w{i}" for i in range(22))]
MODEL = ModelConfig(
  architecture="Llama",
  vocab_size=len(WORDS),
  hidden_size=16,
  intermediate_size=32,
  num_layers=2,
  num_heads=2,
  num_kv_heads=1,
  head_dim=8,
  max_positions=64,
  eos_token_ids=(0,),
  pad_token_id=0,
  tie_embeddings=True,
)


def tokenizer() -> PreTrainedTokenizerFast:
  model = tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unknown>")
  words = tokenizers.Tokenizer(model)
  words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", unk_token="<unknown>")


def policy(seed: int = 0, **fields) -> Policy:
  params = jax.jit(lambda key: jax.tree.map(lambda x: 4.0 * x, init_params(MODEL, key)))(
    jax.random.key(seed)
  )
  return Policy(config=MODEL, params=params, tokenizer=tokenizer(), **fields)


def splits(num_train: int = 10) -> dict[str, list[Prompt]]:
  def prompts(first: int, count: int) -> list[Prompt]:
    return [
      Prompt(id=i, text=" ".join(f"w{(i + j) % 22}" for j in range(1 + i % 5)))
      for i in range(first, first + count)
    ]

  return {"train": prompts(0, num_train), "validation": prompts(100, 3)}


def reward(prompts, completions):
  """Mean index of the words, with a little of the length: continuous, learnable."""
  del prompts
  words = [[int(w[1:]) for w in c.split() if w.startswith("w")] for c in completions]
  return np.array([np.mean(w) / 22 + 0.01 * len(w) if w else -0.1 for w in words])


def config(folder: str | pathlib.Path, **changes) -> RunConfig:
  """Four steps of 2 prompts x 8 rollouts x 6 tokens; `changes` replace fields or groups."""
  base = RunConfig(
    run_folder=str(folder),
    steps=4,
    data=DataConfig(chat=False, max_prompt_length=8, prompts_per_step=2),
    sampling=RolloutConfig(num_rollouts=8, max_completion_length=6),
    optimizer=OptimizerConfig(learning_rate=0.02),
    checkpoint=CheckpointConfig(every=2),
    validation=ValidationConfig(every=0, num_prompts=3, num_samples=8, top=2),
    logging=LoggingConfig(live=False, samples_every=2),
  )
  for name, value in changes.items():
    if name == "advantage":
      changes[name] = AdvantageSpec.from_dict(value)
    elif isinstance(value, dict):
      changes[name] = dataclasses.replace(getattr(base, name), **value)
  return dataclasses.replace(base, **changes)


def console() -> Console:
  return Console(file=io.StringIO(), width=200)


def flags(folder: pathlib.Path) -> list[str]:
  """Flags of a small run in `folder/run` on twelve prompts that are written into `folder`."""
  prompts = folder / "prompts.jsonl"
  prompts.write_text("".join(json.dumps({"prompt": f"w{i} w{i + 1}"}) + "\n" for i in range(12)))
  return (
    f"--run-folder {folder}/run --data.prompts {prompts} --data.no-chat --data.num-validation 2 "
    "--data.num-test 2 --data.prompts-per-step 2 --sampling.max-completion-length 6"
  ).split()


def run(config: RunConfig, policy: Policy, **options) -> TrainResult:
  """Trains on the prompts and the reward of this file, unless others are given."""
  options = {"splits": splits(), "reward": reward, "console": console(), **options}
  return train(config, policy=policy, **options)


def leaf_bytes(tree) -> list[bytes]:
  return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]
