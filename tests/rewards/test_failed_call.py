"""A failed call of a weighted reward keeps what its other parts had scored."""

import numpy as np
import pytest

from tea_jax.rewards import RewardError, WeightedReward
from tea_jax.rewards.failed_call import write_failed_call
from tea_jax.runs.log import read_jsonl

PROMPTS, COMPLETIONS = ["a", "a", "b"], ["x", "yy", "zzz"]


def lengths(prompts, completions):
  return [len(text) if len(text) > 1 else None for text in completions]


def not_finite(prompts, completions):
  return np.array([0.5, np.nan, -np.inf])


def ranks(prompts, completions):
  return [1.0, 2.0, 3.0]


def broken(prompts, completions):
  raise RuntimeError("the server is gone")


def failure(second) -> RewardError:
  reward = WeightedReward(
    {"length": (lengths, 1.0), "judge": (second, 2.0), "never": (broken, 1.0)}
  )
  with pytest.raises(RewardError) as caught:
    reward(PROMPTS, COMPLETIONS)
  return caught.value


def test_an_exception_leaves_the_parts_before_it(tmp_path):
  error = failure(broken)
  assert error.scored == {"length": [None, 2.0, 3.0]}
  write_failed_call(tmp_path / "new" / "kept.jsonl", PROMPTS, COMPLETIONS, error)
  lines = read_jsonl(tmp_path / "new" / "kept.jsonl")
  assert [line["prompt"] for line in lines] == PROMPTS
  assert [line["completion"] for line in lines] == COMPLETIONS
  assert [line["rewards"] for line in lines] == [{"length": v} for v in (None, 2.0, 3.0)]


def test_returned_values_are_kept_with_those_that_are_wrong(tmp_path):
  write_failed_call(tmp_path / "kept.jsonl", PROMPTS, COMPLETIONS, failure(not_finite))
  judged = [line["rewards"]["judge"] for line in read_jsonl(tmp_path / "kept.jsonl")]
  assert judged == [0.5, "nan", "-inf"]


@pytest.mark.parametrize(
  "values", [None, 3.0, np.array(3.0), [1.0], "abc", {"a": 1, "b": 2, "c": 3}]
)
def test_what_is_not_a_value_a_completion_is_left_out(tmp_path, values):
  error = RewardError("failed", name="judge", values=values)
  write_failed_call(tmp_path / "kept.jsonl", PROMPTS, COMPLETIONS, error)
  assert all(line["rewards"] == {} for line in read_jsonl(tmp_path / "kept.jsonl"))


def test_masked_values_are_not_scored(tmp_path):
  values = np.ma.masked_array([1.0, 2.0, np.nan], mask=[False, True, False])
  error = RewardError("failed", name="judge", values=values)
  write_failed_call(tmp_path / "kept.jsonl", PROMPTS, COMPLETIONS, error)
  kept = [line["rewards"]["judge"] for line in read_jsonl(tmp_path / "kept.jsonl")]
  assert kept == [1.0, None, "nan"]


def test_parts_of_a_nested_reward_are_kept_as_well():
  inner = WeightedReward({"length": (lengths, 1.0), "judge": (broken, 1.0)})
  outer = WeightedReward({"first": (ranks, 1.0), "both": (inner, 1.0)})
  with pytest.raises(RewardError, match="judge") as caught:
    outer(PROMPTS, COMPLETIONS)
  assert set(caught.value.scored) == {"first", "length"}
