"""Verifiers: known answers, known traps, and workers that hang."""

import time
import warnings

import numpy as np
import pytest

from tea_jax.rewards import RewardError, call_reward, make_reward
from tea_jax.rewards.verifiers import answer_reader, extract_boxed
from tea_jax.rewards.worker_pool import WorkerPool


@pytest.mark.parametrize(
  "text, answer",
  [
    (r"so \boxed{42}.", "42"),
    (r"first \boxed{1}, then \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
    (r"\boxed{\left\{ x : x > 0 \right\}}", r"\left\{ x : x > 0 \right\}"),
    (r"\boxed 7$ is it", "7"),
    (r"\fbox{3}", "3"),
    (r"\boxed{12} and then \boxed{cut of", "12"),
    ("the answer is 42", None),
    (r"\boxed", None),
    ("", None),
  ],
)
def test_last_complete_box_is_extracted(text, answer):
  assert extract_boxed(text) == answer


@pytest.mark.parametrize(
  "pattern, text, answer",
  [
    (r"#### (.+)", "2 + 2 = 4\n#### 4 \nDone", "4"),
    (r"#### (.+)", "#### 1\n#### 2", "2"),
    (r"\b[A-D]\b", "B or rather C.", "C"),
    (r"#### (.+)", "no answer", None),
    (r"(x)|y", "y", None),
    ("", r"\boxed{7}", "7"),
  ],
)
def test_the_last_match_of_a_pattern_is_the_answer(pattern, text, answer):
  assert answer_reader(pattern)(text) == answer


def test_a_pattern_that_is_none_is_named():
  with pytest.raises(ValueError, match=r"'\(' is not a regular expression"):
    answer_reader("(")


@pytest.fixture(scope="module")
def boxed_math():
  pytest.importorskip("math_verify")
  reward = make_reward("boxed_math", timeout=5.0, num_workers=1)
  yield reward
  reward.close()


def score_boxed(reward, completions, answers):
  return call_reward(reward, ["q"] * len(answers), completions, {"answer": answers})


def test_equal_values_in_other_forms_are_correct(boxed_math):
  cases = [
    (r"\boxed{42}", "42", 1.0),
    (r"\boxed{\frac{1}{2}}", "0.5", 1.0),
    (r"\boxed{1,000}", "1000", 1.0),
    (r"\boxed{x^2 + 2x + 1}", "$(x+1)^2$", 1.0),
    (r"\boxed{43}", "42", 0.0),
    (r"the answer is 42", "42", 0.0),
    (r"\boxed{}", "42", 0.0),
    (r"\boxed{\sqrt{2}}", r"\boxed{\sqrt{2}}", 1.0),
  ]
  completions, answers, scores = zip(*cases)
  np.testing.assert_array_equal(score_boxed(boxed_math, completions, answers), scores)


def test_a_missing_reference_is_not_scored(boxed_math):
  scores = score_boxed(boxed_math, [r"\boxed{None}", "no box", r"\boxed{5}"], [None, None, "5"])
  np.testing.assert_array_equal(scores, [np.nan, np.nan, 1.0])


def test_unreadable_reference_is_not_scored_and_says_so(boxed_math):
  with pytest.warns(UserWarning, match="cannot be parsed"):
    scores = score_boxed(boxed_math, [r"\boxed{7}", r"\boxed{7}"], ["", "7"])
  np.testing.assert_array_equal(scores, [np.nan, 1.0])


def test_missing_column_is_named(boxed_math):
  with pytest.raises(RewardError, match=r"column 'answer'.*\['level'\]"):
    call_reward(boxed_math, ["q"], [r"\boxed{7}"], {"level": [3]})


def test_expression_that_takes_forever_counts_as_wrong_and_the_rest_is_scored(boxed_math):
  quick = make_reward("boxed_math", timeout=1.0, num_workers=1)
  tower = r"\boxed{9^{9^{9^{9^{9}}}}}"
  scores = score_boxed(quick, [tower, r"\boxed{\frac{2}{4}}"], ["7", "0.5"])
  quick.close()
  np.testing.assert_array_equal(scores, [0.0, 1.0])


ECHO = """
import json, sys, time
for line in sys.stdin:
  task = json.loads(line)
  if task.get("die"): sys.exit(3)
  time.sleep(task.get("sleep", 0))
  print(json.dumps({"double": 2 * task["value"]}), flush=True)
"""


@pytest.fixture
def echo(tmp_path):
  path = tmp_path / "echo.py"
  path.write_text(ECHO)
  return str(path)


def test_pool_answers_in_order(echo):
  pool = WorkerPool(echo, num_workers=2)
  answers = pool.map([{"value": value} for value in range(20)])
  assert [answer["double"] for answer in answers] == [2 * value for value in range(20)]
  pool.close()


def test_hanging_task_times_out_and_the_rest_is_answered(echo):
  pool = WorkerPool(echo, num_workers=1, timeout=2.0)
  pool.map([{"value": 0}])  # started: the short time-out holds from here on
  start = time.monotonic()
  answers = pool.map([{"value": 1}, {"value": 2, "sleep": 3600}, {"value": 3}])
  assert time.monotonic() - start < 600
  assert answers == [{"double": 2}, {"timeout": True}, {"double": 6}]
  pool.close()


def test_worker_that_dies_is_replaced(echo):
  pool = WorkerPool(echo, num_workers=1)
  pool.map([{"value": 0}])
  assert pool.map([{"value": 1, "die": True}, {"value": 2}]) == [{"timeout": True}, {"double": 4}]
  pool.close()


def test_worker_that_cannot_start_is_an_error_with_its_reason(tmp_path):
  broken = tmp_path / "broken.py"
  broken.write_text("import module_that_is_not_there\n")
  with pytest.raises(RuntimeError, match="module_that_is_not_there"):
    WorkerPool(str(broken)).map([{}])


def test_regex_searches_or_matches_the_whole():
  texts = ["yes, 12", "12", " 12 \n", "no"]
  search = call_reward(make_reward("regex", pattern=r"\d+"), texts, texts)
  whole = call_reward(make_reward("regex", pattern=r"\d+", full=True, no_match=-1), texts, texts)
  np.testing.assert_array_equal(search, [1, 1, 1, 0])
  np.testing.assert_array_equal(whole, [-1, 1, 1, -1])
  with pytest.raises(ValueError, match="not a regular expression"):
    make_reward("regex", pattern="(")


def test_json_schema_tells_valid_from_parsed_from_text():
  pytest.importorskip("jsonschema")
  schema = {"type": "object", "required": ["age"], "properties": {"age": {"type": "integer"}}}
  reward = make_reward("json_schema", schema=schema, parsed=0.25, invalid=-1)
  texts = [
    '{"age": 3}',
    'Here it is:\n```json\n{"age": 3}\n```\nDone.',
    '{"age": "three"}',
    "[]",
    "age: 3",
    "[" * 100_000,
  ]
  np.testing.assert_array_equal(call_reward(reward, texts, texts), [1, 1, 0.25, 0.25, -1, -1])
  with pytest.raises(ValueError, match="not a JSON schema"):
    make_reward("json_schema", schema={"type": "no such type"})


def test_length_is_one_inside_and_falls_over_the_margin():
  texts = ["a", "a b", "a b c", "a b c d", "a b c d e f g"]
  hard = make_reward("length", minimum=2, maximum=3)
  soft = make_reward("length", minimum=2, maximum=3, margin=2)
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    np.testing.assert_array_equal(call_reward(hard, texts, texts), [0, 1, 1, 0, 0])
    np.testing.assert_array_equal(call_reward(soft, texts, texts), [0.5, 1, 1, 0.5, 0])
  with pytest.raises(ValueError, match="minimum <= maximum"):
    make_reward("length", minimum=3, maximum=2)
