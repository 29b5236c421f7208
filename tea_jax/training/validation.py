"""The validation of a run: how well the policy does on prompts that it is not trained on."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from tea_jax.data import EncodedPrompts
from tea_jax.evaluation.best_of_n import best_of_n_exact
from tea_jax.evaluation.sampling import sample_rewards
from tea_jax.evaluation.scoring import Scorer
from tea_jax.runs.groups import ValidationConfig
from tea_jax.runs.state import Best
from tea_jax.scaling.generators import Engine


@dataclasses.dataclass(frozen=True)
class Validation:
  """The validation prompts of a run and when they are sampled.

  Attributes:
    prompts: encoded; empty for a run that does not validate.
    config: how often, how many samples of each.
    steps: of the run.
    prompts_per_call, num_rollouts: shape of a sampling call in training.
  """

  prompts: EncodedPrompts
  config: ValidationConfig
  steps: int
  prompts_per_call: int
  num_rollouts: int

  def due(self, done: int) -> bool:
    """Whether to validate after `done` steps: every `validation.every`, and after the last."""
    every = self.config.every
    return bool(every) and (done % every == 0 or done == self.steps)

  @property
  def has_own_shape(self) -> bool:
    """Whether its calls are compiled apart: it draws fewer samples than a training group has."""
    return bool(self.config.every) and self.config.num_samples < self.num_rollouts

  def compile(self, engine: Engine, params: Any, key: jax.Array) -> None:
    """Samples one call in the validation's shape, so that nothing compiles later."""
    tokens = self.prompts.tokens
    chosen = [tokens[i % len(tokens)] for i in range(self.prompts_per_call)]
    engine.generate(params, chosen, key=key, num_rollouts=self.config.num_samples)

  def rewards(self, engine: Engine, params: Any, scorer: Scorer, *, key: jax.Array) -> np.ndarray:
    """`[P, n]` rewards, NaN where not scored; the same key meets the same noise."""
    return sample_rewards(
      engine,
      params,
      self.prompts.tokens,
      [prompt.id for prompt in self.prompts.prompts],
      lambda rollouts, chosen: scorer(self.prompts, chosen, rollouts, step=None).rewards,
      key=key,
      num_samples=self.config.num_samples,
      prompts_per_call=self.prompts_per_call,
      num_rollouts=self.num_rollouts,
    )


def validation_best_of_n(rewards: np.ndarray) -> dict[str, float]:
  """`validation/best_of_n/N` for the powers of two up to half of the samples, and for all of them.

  Args:
    rewards: `[P, n]`; prompts with an unscored completion (NaN) are left out.
  """
  complete = rewards[~np.isnan(rewards).any(axis=1)]
  if not complete.size:
    return {}
  budgets = [2**power for power in range((rewards.shape[1] - 1).bit_length())]
  budgets.append(rewards.shape[1])
  values = best_of_n_exact(complete, budgets).mean(axis=0)
  return {f"validation/best_of_n/{n}": float(value) for n, value in zip(budgets, values)}


def better(best: Best | None, step: int, score: float) -> Best:
  """The better of two; the earlier one on ties."""
  return Best(step, score) if best is None or score > best.score else best
