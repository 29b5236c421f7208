"""The quickstart's task for other trainers: SmolLM2, story openings, the lexicon reward."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from typing import Any

import numpy as np

import tea_jax
from tea_jax.advantages.registry import AdvantageSpec
from tea_jax.advantages.rule import GroupRule
from tea_jax.rewards import RewardFunction, make_reward
from tea_jax.runs.datasets import load_splits
from tea_jax.runs.presets import get_preset
from tea_jax.runtime.keys import make_key

QUICKSTART = get_preset("quickstart").config


@dataclasses.dataclass(frozen=True)
class Flags:
  """What is trained.

  Attributes:
    output: Hugging Face folder of the trained policy.
    rule: an advantage rule of ours, or "own" for the trainer's own GRPO.
    model: Hugging Face folder of the base policy; SmolLM2 if empty.
    steps, prompts_per_step, num_rollouts, max_completion_length, learning_rate, seed: of the run.
    kl_coefficient: of the penalty for leaving the base model; 0 keeps no second copy of it.
  """

  output: str
  rule: str = "tea:tail_fraction=0.5"
  model: str = ""
  steps: int = QUICKSTART.steps
  prompts_per_step: int = QUICKSTART.data.prompts_per_step
  num_rollouts: int = QUICKSTART.sampling.num_rollouts
  max_completion_length: int = QUICKSTART.sampling.max_completion_length
  learning_rate: float = QUICKSTART.optimizer.learning_rate
  kl_coefficient: float = QUICKSTART.objective.kl_coefficient
  seed: int = 0

  @property
  def base(self) -> str:
    return self.model or base_model()

  def make_rule(self) -> GroupRule | None:
    return None if self.rule == "own" else AdvantageSpec.parse(self.rule).build()


def base_model(folder: str = "runs/integrations/base") -> str:
  """A Hugging Face folder of SmolLM2, which comes as a GGUF file; written once."""
  if not (pathlib.Path(folder) / "config.json").is_file():
    tea_jax.load_policy(QUICKSTART.model.name).save_pretrained(folder)
  return folder


def training_prompts(split: str = "train") -> list[str]:
  """Those of the quickstart, whose `experiments.evaluate` takes the "test" ones."""
  return [prompt.text for prompt in load_splits(QUICKSTART.data)[split]]


@functools.cache
def reward() -> RewardFunction:
  return make_reward("lexicon")


def compute_score(solution_str: str, extra_info: dict[str, Any], **_: Any) -> float:
  """The reward as verl calls it."""
  return float(np.asarray(reward()([extra_info["prompt"]], [solution_str]), float)[0])


def sample_rewards(flags: Flags, prompts: list[str]) -> tuple[np.ndarray, np.ndarray]:
  """Rewards and lengths of completions of the base policy, `[prompts, num_rollouts]` each."""
  policy = tea_jax.load_policy(flags.base)
  sampling = tea_jax.SamplingConfig(max_completion_length=flags.max_completion_length)
  rollouts = tea_jax.RolloutEngine(policy, sampling).generate(
    policy.params,
    [policy.tokenizer.encode(prompt) for prompt in prompts],
    key=make_key(flags.seed),
    num_rollouts=flags.num_rollouts,
  )
  lengths = np.asarray(rollouts.completion_lengths)
  rewards = np.zeros(lengths.shape, np.float32)
  for place in np.ndindex(*lengths.shape):
    tokens = np.asarray(rollouts.completion_tokens)[place][: lengths[place]]
    text = policy.tokenizer.decode(tokens, skip_special_tokens=True)
    rewards[place] = compute_score(text, {"prompt": prompts[place[0]]})
  return rewards, lengths
