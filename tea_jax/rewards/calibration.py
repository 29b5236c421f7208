"""Rewards on the scale of the base policy: what a completion beats, prompt by prompt.

A reward's units differ from prompt to prompt, and its tail decides what best-of-N is worth. The
share of the base policy's completions of the same prompt that score lower has neither problem; the
normal quantile function turns it into a reward whose base distribution is Normal(0, 1) for every
prompt. The order of a prompt's completions stays.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.special import ndtri

from tea_jax.rewards.base import RewardContext, RewardFunction, call_reward, reward_name
from tea_jax.runtime.secrets import brief


class CalibratedReward:
  """Normal quantile of the share of the base's rewards for this prompt that are lower.

    ndtri((below + ties / 2 + 1 / 2) / (n + 1)),   n base rewards of the prompt

  Beyond the base's best or worst completion it is flat, at about +-2.4 for n = 64: the more base
  completions, the further the scale reaches.

  Source: the calibration of inference-aware alignment, arXiv 2412.19792.
  """

  def __init__(self, reward: RewardFunction, base: Mapping[str, Sequence[float]]):
    """Args: reward: to calibrate. base: prompt -> finite rewards of the base's completions."""
    for prompt, values in base.items():
      if len(values) < 2 or not np.isfinite(values).all():
        raise ValueError(
          f"the base rewards of prompt {prompt[:60]!r} are {list(values)[:4]}; calibration needs "
          "two or more finite numbers for each prompt"
        )
    self.reward = reward
    self.base = {prompt: np.sort(np.asarray(values, np.float64)) for prompt, values in base.items()}
    self.name = f"calibrated {reward_name(reward)}"

  @property
  def row_wise(self) -> bool:
    """As that of the reward."""
    return getattr(self.reward, "row_wise", False)

  def __call__(
    self,
    prompts: Sequence[str],
    completions: Sequence[str],
    *,
    context: RewardContext | None = None,
    **columns: Sequence[Any],
  ) -> list[float | None]:
    if missing := next((prompt for prompt in prompts if prompt not in self.base), None):
      raise ValueError(
        f"there are no base rewards of prompt {missing[:60]!r}; calibrate with the prompts that "
        f"the run trains and evaluates on (there are {len(self.base)})"
      )
    scores = call_reward(self.reward, prompts, completions, columns, context=context)
    return [_calibrated(self.base[p], score) for p, score in zip(prompts, scores)]


def _calibrated(base: Float[np.ndarray, "n"], score: float) -> float | None:
  if np.isnan(score):
    return None
  below, not_above = np.searchsorted(base, score, "left"), np.searchsorted(base, score, "right")
  return float(ndtri((0.5 * (below + not_above) + 0.5) / (len(base) + 1)))


def read_base_rewards(path: str | os.PathLike[str]) -> dict[str, list[float]]:
  """Prompt -> base rewards, of a JSON-lines file of `{"prompt": ..., "rewards": [...]}`.

  Raises:
    ValueError: for a line of another form, named by its number.
  """
  found: dict[str, list[float]] = {}
  for number, line in enumerate(pathlib.Path(path).read_bytes().splitlines(), start=1):
    try:
      record = json.loads(line)
      prompt, values = record["prompt"], [float(value) for value in record["rewards"]]
      if not isinstance(prompt, str) or not np.isfinite(values).all():
        raise ValueError("a prompt is a text and a reward is finite")
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
      raise ValueError(
        f'{path}, line {number} is not {{"prompt": text, "rewards": [numbers]}}: '
        f"{brief(repr(error))}"
      ) from error
    found[prompt] = values
  return found
