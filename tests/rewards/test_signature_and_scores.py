"""Reward calls: arguments by name, results that are numbers, data that no reward can change."""

import asyncio
import dataclasses
import decimal
import fractions

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tea_jax.data.prompts import column_names, make_prompts, reward_inputs
from tea_jax.rewards import RewardError, WeightedReward, call_reward
from tea_jax.rewards.signature import check_arguments

PROMPTS, COMPLETIONS = ["p", "p"], ["yes", "no"]
COLUMNS = {"answer": ["yes", "yes"]}


def right(completions):
  return [float(c == "yes") for c in completions]


@dataclasses.dataclass
class Judge:
  bonus: float = 0.0

  def __call__(self, completions, prompts=None):
    return right(completions)


@pytest.mark.parametrize(
  "reward",
  [
    lambda prompts, completions: right(completions),
    lambda completions, prompts: right(completions),
    lambda completions: right(completions),
    lambda completions, answer, prompts: [float(c == a) for c, a in zip(completions, answer)],
    lambda completions, missing=None: right(completions),
    lambda p, c: right(c),
    lambda p, completions: right(completions),
    lambda prompts, responses: right(responses),
    lambda p, c, answer: [float(x == a) for x, a in zip(c, answer)],
    lambda *inputs, **columns: right(inputs[1]),
    lambda **inputs: right(inputs["completions"]),
    lambda prompts, **inputs: right(inputs["completions"]),
    lambda prompts, completions, /: right(completions),
    lambda completions, **columns: [float(c == a) for c, a in zip(completions, columns["answer"])],
    Judge(),
  ],
)
def test_arguments_go_by_name_whatever_their_order(reward):
  np.testing.assert_array_equal(call_reward(reward, PROMPTS, COMPLETIONS, COLUMNS), [1.0, 0.0])
  check_arguments(reward, COLUMNS)


@pytest.mark.parametrize(
  "reward, said",
  [
    (lambda prompts, completions, solution: [0.0], "'solution'.*'answer'"),
    (lambda completions, p: [0.0], "'p'.*'answer'"),
    (lambda prompts, answer: [0.0], "cannot be called"),
    (lambda: [0.0], "cannot be called"),
    (lambda text: [0.0], "'text'"),
    (lambda completions, prompts, /: [0.0], "cannot be called"),
    (3, "cannot be called"),
  ],
)
def test_signatures_that_cannot_be_called_are_refused_before_a_call(reward, said):
  for refuse in (
    lambda: check_arguments(reward, COLUMNS, name="mine"),
    lambda: check_arguments(WeightedReward({"mine": (reward, 1.0)}), COLUMNS),
    lambda: call_reward(reward, PROMPTS, COMPLETIONS, COLUMNS, name="mine"),
  ):
    with pytest.raises(ValueError, match=rf"mine.*{said}"):
      refuse()


def test_columns_with_reserved_names_reach_the_reward_or_are_refused():
  rows = [{"prompt": "a", "messages": "note", "context": "text"}]
  prompts = list(make_prompts(rows))
  texts, columns = reward_inputs(prompts, 2, columns=column_names(prompts))
  assert columns["messages"] == ["note", "note"]
  with pytest.raises(ValueError, match=r"'context'.*reserved"):
    call_reward(lambda prompts, completions, context: [0.0] * 2, texts, ["x", "y"], columns)
  mixed = list(make_prompts([*rows, {"prompt": [{"role": "user", "content": "b"}]}]))
  with pytest.raises(ValueError, match=r"'messages'.*rename"):
    reward_inputs(mixed, 1)


async def coroutine(prompts, completions):
  return [1.0, 0.0]


class Lies(list):
  def __len__(self):
    return 2


class Fails:
  def __float__(self):
    raise RuntimeError("no number")

  def __repr__(self):
    raise RuntimeError("no text")


@pytest.mark.parametrize(
  "values, said",
  [
    ({0: 0.5, 1: 0.7}, "dict"),
    ({0.5, 0.7}, "set"),
    ("10", "str"),
    (b"10", "bytes"),
    ((x for x in (1.0, 0.0)), "generator"),
    (None, "NoneType"),
    (1.0, "float"),
    (["1", "0"], "'1', which is not a number, for row 0"),
    ([0, True, 1], "3 scores for 2"),
    (Lies([1.0]), "1 scores for 2"),
    ([1.0, 10**400], "row 1"),
    ([1.0, 1e39], "float32.*row 1"),
    ([1.0, float("-inf")], "row 1"),
    (np.ones(2, complex), "row 0"),
    (np.ones((2, 1)), "row 0"),
    ([Fails(), 1.0], "row 0"),
    (np.array(["1", "0"]), "row 0"),
    ([1.0, {"score": 1}], "row 1"),
  ],
)
def test_what_is_no_list_of_numbers_is_an_error_that_says_so(values, said):
  with pytest.raises(RewardError, match=rf"mine.*{said}"):
    call_reward(lambda prompts, completions: values, PROMPTS, COMPLETIONS, name="mine")


@pytest.mark.parametrize(
  "reward", [coroutine, lambda prompts, completions: asyncio.Future(loop=asyncio.new_event_loop())]
)
def test_async_rewards_are_refused_as_async(reward):
  with pytest.raises(RewardError, match="async"):
    call_reward(reward, PROMPTS, COMPLETIONS)


@pytest.mark.parametrize(
  "values",
  [
    [True, False],
    (1, 0),
    [decimal.Decimal(1), fractions.Fraction(0)],
    jnp.array([1.0, 0.0]),
    np.array([1, 0], np.int8),
    [np.float16(1), jnp.float32(0)],
    np.ma.masked_array([1.0, 0.0], mask=[False, False]),
  ],
)
def test_numbers_of_every_kind_are_scores(values):
  scores = call_reward(lambda prompts, completions: values, PROMPTS, COMPLETIONS)
  np.testing.assert_array_equal(scores, [1.0, 0.0])


def test_nothing_that_a_reward_changes_reaches_the_data():
  prompts = list(make_prompts([{"prompt": "w", "tests": [["t"]]}]))
  rows, columns = reward_inputs(prompts, 2)

  def mine(prompts, completions, tests):
    tests[0][0].append("more")
    prompts.clear()
    completions.sort()
    return [1.0, float(len(tests[1][0]))]

  reward = WeightedReward({"first": (mine, 1.0), "again": (mine, 1.0)})
  scores = reward.components(rows, ["b", "a"], columns)
  np.testing.assert_array_equal(scores["first"], scores["again"])
  assert prompts[0].columns["tests"] == [["t"]]


def test_an_exception_names_the_line_of_the_users_code():
  def mine(prompts, completions):
    return [1 / 0 for _ in completions]

  with pytest.raises(RewardError, match=r"ZeroDivisionError.*test_signature_and_scores.py, line"):
    call_reward(mine, PROMPTS, COMPLETIONS)

  def stops(prompts, completions):
    raise SystemExit(0)

  with pytest.raises(RewardError, match="SystemExit"):
    call_reward(stops, PROMPTS, COMPLETIONS)


_values = st.recursive(
  st.none()
  | st.booleans()
  | st.integers()
  | st.floats()
  | st.text(max_size=3)
  | st.binary(max_size=3)
  | st.complex_numbers(),
  lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.integers(), inner, max_size=2),
  max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(_values)
def test_any_result_is_scores_or_a_reward_error(values):
  try:
    scores = call_reward(lambda prompts, completions: values, PROMPTS, COMPLETIONS)
  except RewardError as error:
    event = str(error)
    assert "\n" not in event
    return
  assert isinstance(values, list)
  for value, score in zip(values, scores, strict=True):
    assert np.isnan(score) if value is None else score == value
