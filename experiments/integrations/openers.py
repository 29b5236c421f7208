"""The quickstart's task for other trainers: SmolLM2, story openings, the lexicon reward."""

from __future__ import annotations

import pathlib

import tea_jax
from tea_jax.rewards import RewardFunction, make_reward
from tea_jax.runs.datasets import load_splits
from tea_jax.runs.presets import get_preset

QUICKSTART = get_preset("quickstart").config


def base_model(folder: str = "runs/integrations/base") -> str:
  """A Hugging Face folder of SmolLM2, which comes as a GGUF file; written once."""
  if not (pathlib.Path(folder) / "config.json").is_file():
    tea_jax.load_policy(QUICKSTART.model.name).save_pretrained(folder)
  return folder


def training_prompts() -> list[str]:
  """Those of the quickstart; `experiments.evaluate --preset quickstart` holds out the others."""
  return [prompt.text for prompt in load_splits(QUICKSTART.data)["train"]]


def reward() -> RewardFunction:
  return make_reward("lexicon")
