"""Tables of right and wrong answers."""

import numpy as np

from tea_jax.evaluation.answers import accuracy_rows, is_checkable
from tea_jax.evaluation.records import Records, Samples
from tea_jax.evaluation.report import write_report
from tea_jax.rewards.verifiers import answer_reader


def records(texts, rewards):
  rewards = np.asarray(rewards, np.float64)
  samples = Samples(texts, np.full(rewards.shape, 5), np.ones(rewards.shape, bool))
  prompts = [f"p{i}" for i in range(len(texts))]
  return Records(prompts, np.arange(len(texts)), samples, rewards, {"reward": "boxed_math"})


BOXED = [
  [r"\boxed{4}", r"\boxed{5}", r"\boxed{4}", "no idea"],
  [r"\boxed{1}", r"\boxed{1}", r"\boxed{1}", r"\boxed{1}"],
]
RUNS = {"base": [records(BOXED, [[1, 0, 1, 0], [0, 0, 0, 0]])]}


def test_pass_and_majority_of_known_answers():
  (passed, voted) = accuracy_rows(RUNS, [1, 4])
  assert passed[:2] == ["base", "pass@k"]
  assert [cell.split()[0] for cell in passed[2:]] == ["25.0", "50.0"]
  assert voted[:2] == ["base", "maj@k"]
  assert [cell.split()[0] for cell in voted[2:]] == ["25.0", "50.0"]


def test_majority_needs_answers_that_can_be_read():
  plain = {"base": [records([["yes", "no"]], [[1, 0]])]}
  assert [row[1] for row in accuracy_rows(plain)] == ["pass@k"]


def test_only_zero_and_one_are_checkable():
  assert is_checkable(RUNS)
  assert not is_checkable({"base": [records(BOXED[:1], [[1, 0.5, 0, 0]])]})
  assert not is_checkable({"base": [records(BOXED[:1], [[1, np.nan, 0, 0]])]})


def test_report_of_checkable_answers_has_their_table(tmp_path):
  text = write_report(tmp_path, RUNS, baselines=(), title="T", figures=False).read_text()
  assert "## Correct answers" in text
  assert "| base | maj@k | 25.0" in text


def test_report_reads_answers_by_a_pattern(tmp_path):
  texts = [["#### 4", "#### 5", "#### 4"], ["#### 1", "#### 2", "#### 2"]]
  runs = {"base": [records(texts, [[1, 0, 1], [1, 0, 0]])]}
  options = {"baselines": (), "title": "T", "figures": False}
  assert "maj@k" not in write_report(tmp_path, runs, **options).read_text()
  text = write_report(
    tmp_path, runs, budgets=[3], answer=answer_reader("#### (.+)"), **options
  ).read_text()
  assert "| base | maj@k | 50.0" in text
