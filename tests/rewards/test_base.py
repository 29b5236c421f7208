"""Checked reward calls: every defect is named, nothing is dropped."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tea_jax.rewards import (
  RewardContext,
  RewardError,
  WeightedReward,
  call_reward,
)

PROMPTS = ["red", "red", "blue", "blue"]
COMPLETIONS = ["a", "bb", "ccc", "dddd"]


def lengths(prompts, completions):
  return [float(len(text)) for text in completions]


def returning(values):
  return lambda prompts, completions: values


def test_scores_come_back_as_float64_in_order():
  scores = call_reward(lengths, PROMPTS, COMPLETIONS)
  assert scores.dtype == np.float64
  np.testing.assert_array_equal(scores, [1, 2, 3, 4])


@pytest.mark.parametrize(
  "values",
  [
    [1, None, 3, 4],
    np.ma.masked_array([1.0, np.nan, 3.0, 4.0], mask=[False, True, False, False]),
    np.ma.masked_array([1, 7, 3, 4], mask=[False, True, False, False]),
  ],
)
def test_none_and_masked_mean_not_scored(values):
  scores = call_reward(returning(values), PROMPTS, COMPLETIONS)
  np.testing.assert_array_equal(scores, [1, np.nan, 3, 4])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_not_finite_scores_name_reward_prompt_and_rollout(bad):
  with pytest.raises(RewardError) as caught:
    call_reward(
      returning([1.0, 2.0, 3.0, bad]), PROMPTS, COMPLETIONS, name="skywork", num_rollouts=2
    )
  message = str(caught.value)
  assert "'skywork'" in message
  assert "prompt 1 ('blue'), rollout 1" in message
  assert "'dddd'" in message
  assert caught.value.row == 3
  assert caught.value.values[:3] == [1.0, 2.0, 3.0]


def test_unmasked_nan_in_a_masked_array_is_an_error():
  values = np.ma.masked_array([1.0, np.nan, 3.0, 4.0], mask=[True, False, False, False])
  with pytest.raises(RewardError, match="row 1"):
    call_reward(returning(values), PROMPTS, COMPLETIONS)


@pytest.mark.parametrize("values", [[1.0], [1.0] * 5, np.zeros((3,))])
def test_wrong_length_is_an_error_with_both_numbers(values):
  with pytest.raises(RewardError, match=f"returned {len(values)} scores for 4 completions"):
    call_reward(returning(values), PROMPTS, COMPLETIONS)


@pytest.mark.parametrize("values", [None, 3.0, [1, 2, "many", 4], [[1, 2], 2, 3, 4]])
def test_what_is_not_a_number_is_an_error(values):
  with pytest.raises(RewardError):
    call_reward(returning(values), PROMPTS, COMPLETIONS)


def test_exception_in_a_reward_keeps_its_cause_and_names_the_row():
  def fails(prompts, completions):
    error = KeyError("answer")
    error.row = 2
    raise error

  with pytest.raises(RewardError, match=r"KeyError.*prompt 1 \('blue'\), rollout 0") as caught:
    call_reward(fails, PROMPTS, COMPLETIONS, num_rollouts=2)
  assert isinstance(caught.value.__cause__, KeyError)


def test_long_prompts_are_cut_in_messages():
  with pytest.raises(RewardError) as caught:
    call_reward(returning([math.nan]), ["word " * 200], ["x"])
  assert len(str(caught.value)) < 400


def test_a_function_receives_only_the_columns_that_it_names():
  seen = {}

  def named(prompts, completions, answer):
    seen["answer"] = answer
    return [0.0] * len(prompts)

  def everything(prompts, completions, **columns):
    seen["columns"] = sorted(columns)
    return [0.0] * len(prompts)

  columns = {"answer": list("abcd"), "level": [1, 2, 3, 4], "completions": [[]] * 4}
  call_reward(named, PROMPTS, COMPLETIONS, columns)
  call_reward(everything, PROMPTS, COMPLETIONS, columns)
  assert seen == {"answer": list("abcd"), "columns": ["answer", "context", "level"]}


def test_a_reward_can_read_the_step_and_log_numbers():
  def curriculum(prompts, completions, context):
    context.metrics["share"] = context.step / context.num_steps
    return [0.0] * len(prompts)

  context = RewardContext(step=5, num_steps=20)
  call_reward(curriculum, PROMPTS, COMPLETIONS, context=context)
  assert context.metrics == {"share": 0.25}


def test_columns_of_another_length_are_refused():
  with pytest.raises(ValueError, match="column 'answer' has 1 entries for 4"):
    call_reward(lengths, PROMPTS, COMPLETIONS, {"answer": ["a"]})
  with pytest.raises(ValueError, match="3 prompts and 4 completions"):
    call_reward(lengths, PROMPTS[:3], COMPLETIONS)


def test_no_rows_need_no_call():
  assert call_reward(returning(None), [], []).shape == (0,)


def test_weighted_reward_is_the_weighted_sum_where_scored():
  reward = WeightedReward({"length": (lengths, 2.0), "even": (returning([None, 1, None, 1]), -0.5)})
  np.testing.assert_allclose(call_reward(reward, PROMPTS, COMPLETIONS), [2, 3.5, 6, 7.5])


def test_row_that_no_reward_scored_is_not_scored():
  reward = WeightedReward({"some": (returning([None, 0.0, None, 1.0]), 3.0)})
  np.testing.assert_array_equal(
    call_reward(reward, PROMPTS, COMPLETIONS), [np.nan, 0.0, np.nan, 3.0]
  )


@given(weight=st.floats(-3, 3), other=st.floats(-3, 3))
def test_weighted_reward_is_linear_in_its_weights(weight, other):
  table = {"a": np.array([1.0, -2.0, 0.5]), "b": np.array([0.0, 3.0, 1.0])}
  reward = WeightedReward({"a": (lengths, weight), "b": (lengths, other)})
  np.testing.assert_allclose(reward.combine(table), weight * table["a"] + other * table["b"])


def test_nan_of_a_component_names_the_component():
  reward = WeightedReward({"good": (lengths, 1.0), "bad": (returning([math.nan] * 4), 1.0)})
  with pytest.raises(RewardError, match="'bad'"):
    call_reward(reward, PROMPTS, COMPLETIONS, name="sum")
  with pytest.raises(RewardError, match=r"'bad'.*prompt 0 .*rollout 0"):
    reward.components(PROMPTS, COMPLETIONS, num_rollouts=2, answer=list("abcd"))


@pytest.mark.parametrize("weight", [math.nan, math.inf])
def test_weights_must_be_finite(weight):
  with pytest.raises(ValueError, match="finite"):
    WeightedReward({"a": (lengths, weight)})
  with pytest.raises(ValueError, match="at least one"):
    WeightedReward({})
