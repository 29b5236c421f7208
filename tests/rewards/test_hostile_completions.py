"""Completions that would hold or stop a verifier get a score, in bounded time."""

import functools
import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tea_jax.rewards import call_reward, make_reward, text_checks
from tea_jax.rewards.verifiers import answer_reader, extract_boxed
from tea_jax.rewards.worker_pool import WorkerPool

RECURSIVE = {"$defs": {"t": {"type": "array", "items": {"$ref": "#/$defs/t"}}}, "$ref": "#/$defs/t"}


@pytest.mark.parametrize("text", ["\\boxed{", "\\boxed ", "\\boxed7", "\\fbox{\\{", "\\boxed{}"])
def test_boxed_answers_are_found_in_linear_time(text):
  start = time.process_time()
  extract_boxed(text * 20_000)
  assert time.process_time() - start < 2.0


def test_an_empty_or_bare_box_behind_the_answer_does_not_replace_it():
  assert extract_boxed("\\boxed{5}. The form is \\boxed{}.") == "5"
  assert extract_boxed("The answer is \\boxed{5}, in the \\boxed notation.") == "5"
  assert extract_boxed("\\boxed 7.") == "7"
  assert extract_boxed("\\boxed{}") == ""
  assert extract_boxed("{\\boxed{a{b}\\}c}") == "a{b}\\}c"


@pytest.mark.parametrize(
  "schema, completion, score",
  [
    ({"multipleOf": 0.5}, "NaN", 0.0),
    ({"multipleOf": 0.3}, "9" * 400, 0.5),
    (RECURSIVE, "[" * 900 + "]" * 900, 0.5),
    ({"uniqueItems": True}, "[1, true, 1.5]", 1.0),
    ({"uniqueItems": True}, "[1, 1.0]", 0.5),
    ({"uniqueItems": True}, '[{"a": [1], "b": 2}, {"b": 2, "a": [1]}]', 0.5),
    ({"uniqueItems": True}, str([[i] for i in range(5000)]), 1.0),
  ],
)
def test_every_completion_gets_a_schema_score(schema, completion, score):
  pytest.importorskip("jsonschema")
  reward = make_reward("json_schema", schema=schema, parsed=0.5)
  assert call_reward(reward, ["p"], [completion]) == [score]


@pytest.mark.parametrize("full", [False, True])
def test_a_completion_that_a_pattern_backtracks_on_is_no_match_in_bounded_time(full, caplog):
  reward = make_reward("regex", pattern="(a+)+b", full=full)
  start = time.process_time()
  texts = ["aab", "a" * 5000, "b", "a" * 40 + "!", "ab"]
  assert call_reward(reward, ["p"] * 5, texts).tolist() == [1.0, 0.0, 0.0, 0.0, 1.0]
  assert time.process_time() - start < 2.0  # the worker's seconds are its own
  assert "2 of 5 completions take too long with '(a+)+b'" in caplog.text


def test_an_answer_that_a_pattern_backtracks_on_is_none():
  read = answer_reader(r"(?:x+x+)+(y)")
  assert [read("xxy"), read("x" * 60), read("xxxy")] == ["y", None, "y"]


def test_a_schema_whose_pattern_backtracks_counts_as_parsed():
  pytest.importorskip("jsonschema")
  for schema in ({"pattern": "^(a+)+$"}, {"patternProperties": {"^(a+)+$": {"type": "null"}}}):
    reward = make_reward("json_schema", schema=schema, parsed=0.5)
    for text in (f'"{"a" * 50}!"', json.dumps({"a" * 50 + "!": 1})):
      assert call_reward(reward, ["p", "p"], [text, "0"])[1] == 1.0
    late = f'"{"a" * 50}!"' if "pattern" in schema else json.dumps({"a" * 50 + "!": 1})
    assert call_reward(reward, ["p"], [late]) == [0.5]


def test_a_text_that_kills_the_worker_costs_only_itself(monkeypatch):
  check = text_checks.TextCheck("search", "a")

  class Dying:
    """Answers unless it is asked for a text that takes its memory."""

    started = True

    def ask(self, task, timeout):
      if "bomb" in task["texts"]:
        return {"timeout": True}
      return {"found": ["a" in text for text in task["texts"]], "late": []}

  monkeypatch.setattr(check, "_process", Dying())
  assert check(["a", "bomb", "b", "ca"]) == [True, False, False, True]


@pytest.mark.parametrize("reference", ["http://127.0.0.1:1/x", "file:///etc/passwd", "other.json"])
def test_a_schema_is_never_fetched(reference):
  pytest.importorskip("jsonschema")
  with pytest.raises(ValueError, match="nothing is fetched"):
    make_reward("json_schema", schema={"properties": {"a": {"$ref": reference}}})


@functools.cache
def _recursive():
  """One for all texts: its process takes longer to start than to answer."""
  pytest.importorskip("jsonschema")
  return make_reward("json_schema", schema=RECURSIVE, parsed=0.5)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet='\\boxedf{}[]",:0123456789.eE-+nulltrue ', max_size=60))
def test_any_text_gets_a_score(text):
  assert call_reward(_recursive(), ["p"], [text])[0] in (0.0, 0.5, 1.0)
  answer = extract_boxed(text)
  assert answer is None or answer in text


def test_what_workers_print_never_blocks_them(tmp_path):
  program = tmp_path / "worker.py"
  program.write_text(
    "import sys\nfor line in sys.stdin:\n"
    "  sys.stderr.write('warning' * 30000); print('{\"correct\": true}', flush=True)\n"
  )
  pool = WorkerPool(str(program), num_workers=1, timeout=10.0)
  assert pool.map([{"a": i} for i in range(8)]) == [{"correct": True}] * 8
  pool.close()


@pytest.mark.parametrize("answer", ["'no json'", "'[1]'", "'x' * 3000000"])
def test_a_worker_that_answers_nonsense_is_replaced(tmp_path, answer):
  program = tmp_path / "worker.py"
  program.write_text(f"import sys\nfor line in sys.stdin: print({answer}, flush=True)\n")
  pool = WorkerPool(str(program), num_workers=1, timeout=10.0)
  assert pool.map([{"a": 1}, {"a": 2}]) == [{"timeout": True}] * 2
  pool.close()
