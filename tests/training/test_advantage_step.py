"""From rewards to advantages: completions vote only where a rule counts votes."""

import jax
import numpy as np
import pytest

from tea_jax import cat_majority, tea
from tea_jax.rollout.types import Rollouts
from tea_jax.runs.objective import ObjectiveConfig
from tea_jax.training.advantage_step import AdvantageStep, answer_ids, rewards_for_rule

TEXTS = np.array(
  [
    [r"so \boxed{4}", r"\boxed{5}", "no idea", r"\boxed{4}", r"\boxed{ 5 }", r"\boxed{7}"],
    [r"\boxed{7}", r"\boxed{7}", r"\boxed{7}", r"\boxed{8}", "7", r"\boxed{7}"],
  ],
  object,
)
CORRECT = np.array([[1, 0, 0, 1, 0, 0], [0, 0, 0, 1, 0, 0]], np.float32)


def rollouts_of(shape, finished=True):
  tokens = np.zeros((*shape, 2))
  return Rollouts(
    prompt_tokens=np.zeros((shape[0], 3), np.int32),
    prompt_lengths=np.full(shape[0], 3),
    completion_tokens=tokens.astype(np.int32),
    completion_lengths=np.full(shape, 2),
    finished=np.broadcast_to(np.asarray(finished), shape),
    logprobs=tokens - 1.0,
    sampling_logprobs=tokens - 1.0,
  )


def test_equal_answers_of_a_prompt_share_an_id():
  ids = answer_ids(TEXTS, lambda text: text if "boxed" in text else None)
  np.testing.assert_array_equal(ids[1], [0, 0, 0, 1, -1, 0])
  assert ids.dtype == np.int32
  assert ids[0, 2] == -1
  assert ids[0, 0] != ids[0, 1]


@pytest.mark.parametrize("threshold", ["dynamic", "tracked"])
def test_votes_reach_the_majority_rule(threshold):
  rule = cat_majority(threshold=threshold, budget=8)
  step = AdvantageStep(rule)
  arguments = {"step": 0, "key": jax.random.key(0)}
  rollouts = rollouts_of(TEXTS.shape)
  advantages, _, logged = step(rule.init(), CORRECT, None, rollouts, TEXTS, **arguments)
  assert logged["answers/read_frac"] == np.mean(answer_ids(TEXTS, step.answer) >= 0)
  expected, _ = rule.update(
    rule.init(), CORRECT, step=0, answers=answer_ids(TEXTS, step.answer), key=jax.random.key(0)
  )
  np.testing.assert_allclose(advantages, expected, rtol=1e-6)
  # Six copies of one wrong answer must be beaten, not one of each.
  scattered = TEXTS.copy()
  scattered[1, :3] = [r"\boxed{1}", r"\boxed{2}", r"\boxed{3}"]
  other, _, _ = step(rule.init(), CORRECT, None, rollouts, scattered, **arguments)
  assert not np.allclose(other[1], advantages[1])


def test_rules_without_votes_read_no_answers():
  def refuse(text):
    raise AssertionError(text)

  step = AdvantageStep(tea(budget=8), answer=refuse)
  rewards = np.arange(12, dtype=np.float32).reshape(2, 6)
  arguments = {"step": 0, "key": jax.random.key(0)}
  advantages, _, diagnostics = step((), rewards, None, rollouts_of((2, 6)), TEXTS, **arguments)
  np.testing.assert_allclose(advantages, tea(budget=8)(rewards), rtol=1e-6)
  assert diagnostics


def test_unscored_and_truncated_rollouts():
  rewards = np.array([[1.0, np.nan, 3.0]])
  rollouts = rollouts_of((1, 3), finished=[[True, True, False]])
  shaped, where = rewards_for_rule(ObjectiveConfig(), rewards, rollouts, None)
  np.testing.assert_array_equal(shaped, [[1, 0, 3]])
  np.testing.assert_array_equal(where, [[True, False, True]])
  masked = ObjectiveConfig(truncated_rollouts="mask")
  np.testing.assert_array_equal(
    rewards_for_rule(masked, rewards, rollouts, None)[1], [[True, False, False]]
  )
  punished = ObjectiveConfig(truncated_rollouts="penalise", truncation_penalty=2.0)
  np.testing.assert_array_equal(rewards_for_rule(punished, rewards, rollouts, None)[0], [[1, 0, 1]])
