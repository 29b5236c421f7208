"""Reward files of other engines become records."""

import json

import numpy as np
import pytest

from tea_jax.evaluation.comparison import compare_runs
from tea_jax.evaluation.reward_files import is_reward_file, read_reward_file

ROWS = [
  {"prompt": "a", "reward": 1.0, "response": "x"},
  {"prompt": "b", "reward": 3, "response": "y"},
  {"prompt": "a", "reward": None, "response": "z"},
  {"prompt": "b", "reward": -1.5, "response": None},
  {"prompt": "a", "reward": 7.0, "response": "more than b has"},
]


@pytest.fixture(params=["jsonl", "parquet"])
def file(request, tmp_path):
  path = tmp_path / f"rewards.{request.param}"
  if request.param == "jsonl":
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS) + "\n")
  else:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.Table.from_pylist(ROWS), path)
  return path


def test_lines_are_grouped_by_prompt_in_order(file):
  records = read_reward_file(file)
  assert records.prompts == ["a", "b"]
  np.testing.assert_array_equal(records.rewards, [[1.0, np.nan], [3.0, -1.5]])
  assert records.samples.completions == [["x", "z"], ["y", ""]]
  assert is_reward_file(file)


def test_own_column_names_and_prompts_that_are_not_text(tmp_path):
  path = tmp_path / "scores.jsonl"
  path.write_text('{"id": 7, "score": 1, "answer": "p"}\n{"id": 7, "score": 2, "answer": "q"}\n')
  records = read_reward_file(path, prompt_column="id", reward_column="score", text_column="answer")
  assert records.prompts == ["7"]
  assert records.samples.completions == [["p", "q"]]


def test_files_are_compared_like_evaluations(tmp_path):
  rng = np.random.default_rng(0)
  runs = {}
  for name, shift in (("base", 0.0), ("tuned", 1.0)):
    path = tmp_path / f"{name}.jsonl"
    rows = [{"prompt": f"p{i}", "reward": shift + rng.normal()} for i in range(6) for _ in range(8)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    runs[name] = [read_reward_file(path)]
  comparison = compare_runs(runs)
  assert comparison.budgets == [1, 2, 4, 8]
  expected = runs["tuned"][0].rewards.mean() - runs["base"][0].rewards.mean()
  np.testing.assert_allclose(comparison.difference("tuned", "base").estimate[0], expected)


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("", "holds no lines"),
    ("{", "line 1 is not JSON"),
    ("[1]", "line 1 is not a JSON object"),
    ('{"prompt": "a"}', "line 1 has no column 'reward'; it has prompt"),
    ('{"prompt": "a", "reward": "high"}', "line 1 has the reward 'high'"),
    ('{"prompt": "a", "reward": NaN}', "line 1 has the reward nan"),
  ],
)
def test_what_is_wrong_is_named(tmp_path, text, message):
  path = tmp_path / "bad.jsonl"
  path.write_text(text)
  with pytest.raises(ValueError, match=message):
    read_reward_file(path)


def test_other_files_are_refused(tmp_path):
  with pytest.raises(ValueError, match=r"neither \.jsonl nor \.parquet"):
    read_reward_file(tmp_path / "rewards.csv")
  with pytest.raises(ValueError, match="does not exist"):
    read_reward_file(tmp_path / "rewards.jsonl")
