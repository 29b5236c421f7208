"""From a batch's rewards to its advantages: what the rule sees, and one compiled call.

Axes: P prompts, m rollouts of each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tea_jax.advantages import GroupRule, advantage_diagnostics
from tea_jax.rewards.verifiers import extract_boxed
from tea_jax.rollout.types import Rollouts
from tea_jax.runs.objective import ObjectiveConfig
from tea_jax.runtime import processes
from tea_jax.tail import minimum_budget
from tea_jax.training.kl import kl_in_reward


class AdvantageStep:
  """Advantages, next tracked statistics and diagnostics of a batch, in one compiled call.

  Args:
    rule: the advantage rule.
    answer: reads the answer that votes out of a completion, None where there is none; used by the
      rules that count votes. The share that can be read is logged as `answers/read_frac`: at 0 all
      completions vote alike.
  """

  def __init__(self, rule: GroupRule, *, answer: Callable[[str], str | None] = extract_boxed):
    self.rule, self.answer = rule, answer
    self.votes = "answers" in rule.needs or bool(rule.tracker and rule.tracker.needs_answers)
    self._compiled = jax.jit(self._advantages)

  def __call__(
    self,
    tracked: Any,
    rewards: np.ndarray,
    where: np.ndarray | None,
    rollouts: Rollouts,
    texts: np.ndarray,
    *,
    step: int,
    key: jax.Array,
  ) -> tuple[jax.Array, Any, dict[str, Any]]:
    """`(advantages [P, m], next tracked statistics, diagnostics)`.

    Args:
      tracked: statistics of the rule before this step.
      rewards, where: `[P, m]`, see `rewards_for_rule`.
      rollouts: of the batch; their log-probs are there for the rules that ask for them.
      texts: `[P, m]` completions.
      step: of the run.
      key: of rules that draw.
    """
    answers = answer_ids(texts, self.answer) if self.votes else None
    read = {} if answers is None else {"answers/read_frac": np.mean(answers >= 0)}
    advantages, tracked, diagnostics = jax.block_until_ready(
      self._compiled(
        tracked, rewards, where, rollouts.logprobs.sum(-1), answers, np.int32(step), key
      )
    )
    return advantages, tracked, {**diagnostics, **read}

  def _advantages(self, tracked, rewards, where, logprobs, answers, step, key):
    rule = self.rule
    fraction = rule.parameters.get("tail_fraction", 0.25)
    advantages, tracked = rule.update(
      tracked, rewards, step=step, where=where, key=key, logprobs=logprobs, answers=answers
    )
    diagnostics = advantage_diagnostics(
      rewards,
      advantages,
      tail_fraction=fraction,
      budget=max(int(rule.parameters.get("budget", 128)), minimum_budget(fraction)),
      where=where,
      minimum_rollouts=rule.smallest_group(rewards.shape[-1]),
    )
    return advantages, tracked, diagnostics


def told_of_ties(rule: GroupRule, tied_share: float) -> str | None:
  """What to say where a rule of the tail is blind to most groups; None where it is not.

  Args:
    rule: of the run.
    tied_share: of the groups whose whole tail is one reward.
  """
  of_tail = {"tail_fraction", "budget"} <= set(rule.parameters)
  if tied_share < 0.5 or not of_tail or rule.name == "tied_tea":
    return None
  return (
    f"in {tied_share:.0%} of the groups the whole tail is one reward, and {rule.name} tells it "
    f"apart from nothing. That is right where the best of {rule.parameters['budget']} reaches this "
    "reward anyway; otherwise use --advantage.name tied_tea, cat_pass_at_n (right or wrong) or "
    "max_at_k, a smaller budget, or a finer reward."
  )


def answer_ids(texts: np.ndarray, answer: Callable[[str], str | None]) -> np.ndarray:
  """`[P, m]` int32: equal answers of a prompt have equal ids; -1 where there is no answer."""
  ids = np.full(texts.shape, -1, np.int32)
  for row, group in enumerate(texts):
    known: dict[str, int] = {}
    for column, text in enumerate(group):
      read = answer(text)
      if read is not None:
        ids[row, column] = known.setdefault(read, len(known))
  return ids


def rewards_for_rule(
  objective: ObjectiveConfig,
  rewards: np.ndarray,
  rollouts: Rollouts,
  reference: jax.Array | None,
  *,
  kl_coefficient: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
  """Rewards `[P, m]` as the rule sees them, and which rollouts count.

  Args:
    objective: says what becomes of truncated rollouts, and whether the KL is in the reward.
    rewards: `[P, m]`, NaN where not scored.
    rollouts: of the batch.
    reference: `[P, m, T]` log-probs of the reference, or None.
    kl_coefficient: of a KL in the reward; None for the objective's.
  """
  scored = ~np.isnan(rewards)
  shaped = np.where(scored, rewards, 0.0)
  cut = ~np.asarray(rollouts.finished)
  if objective.truncated_rollouts == "penalise":
    shaped = shaped - objective.truncation_penalty * cut
  if objective.kl_placement == "reward" and reference is not None:
    shaped = kl_in_reward(
      jnp.asarray(shaped),
      rollouts.logprobs,
      processes.local(reference),
      rollouts.completion_lengths,
      kl_coefficient=objective.kl_coefficient if kl_coefficient is None else kl_coefficient,
    )
  counted = scored & ~cut if objective.truncated_rollouts == "mask" else scored
  # Always an array: the first unscored rollout of a run must not compile the rule again.
  return np.asarray(shaped, np.float32), counted
