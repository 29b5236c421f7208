"""Prompts from every source, with defects named by file and line."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tea_jax.data import Prompt, load_prompts, make_prompt, reward_inputs, unique_prompts

TURNS = [
  {"role": "user", "content": "Hello"},
  {"role": "assistant", "content": "Hi"},
  {"role": "user", "content": "How are you?"},
]


def test_at_least_320_openers_all_different_and_short():
  prompts = load_prompts("openers")
  assert len(prompts) >= 320
  assert len({prompt.text for prompt in prompts}) == len(prompts)
  assert all(4 <= len(prompt.text.split()) <= 24 for prompt in prompts)
  assert all(prompt.text == prompt.text.strip() and prompt.text.isascii() for prompt in prompts)


def test_jsonl_and_parquet_give_the_same_prompts_with_columns(tmp_path):
  rows = [{"question": "1 + 1?", "answer": "2"}, {"question": "2 + 2?", "answer": "4"}]
  (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
  pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
  jsonl = load_prompts(tmp_path / "a.jsonl")
  assert jsonl == load_prompts(str(tmp_path / "a.parquet"))
  assert [prompt.text for prompt in jsonl] == ["1 + 1?", "2 + 2?"]
  assert [prompt.columns for prompt in jsonl] == [{"answer": "2"}, {"answer": "4"}]


def test_text_file_holds_a_prompt_a_line(tmp_path):
  (tmp_path / "a.txt").write_text("one\n\ntwo\n")
  assert [prompt.text for prompt in load_prompts(tmp_path / "a.txt")] == ["one", "two"]


def test_function_and_its_name_are_sources(tmp_path, monkeypatch):
  (tmp_path / "my_prompts.py").write_text("def few():\n  return ['a', {'prompt': 'b', 'x': 1}]\n")
  monkeypatch.chdir(tmp_path)
  expected = load_prompts(lambda: ["a", {"prompt": "b", "x": 1}])
  assert load_prompts("my_prompts:few") == expected
  assert load_prompts("my_prompts.py:few") == expected
  assert [prompt.text for prompt in expected] == ["a", "b"]
  with pytest.raises(ValueError, match="must return a sequence"):
    load_prompts(lambda: "just text")


def test_hub_format_is_read_from_a_local_folder(tmp_path):
  pytest.importorskip("datasets")
  (tmp_path / "set").mkdir()
  (tmp_path / "set" / "train.jsonl").write_text('{"instruction": "Go", "source": "s"}\n')
  prompts = load_prompts(f"{tmp_path}/set")
  assert [(p.text, p.columns) for p in prompts] == [("Go", {"source": "s"})]
  with pytest.raises(ValueError, match="cannot load split 'test'"):
    load_prompts(f"{tmp_path}/set", split="test")


def test_conversation_keeps_its_turns():
  prompt = make_prompt(TURNS)
  assert prompt.conversation == TURNS
  assert prompt.text == "user: Hello\n\nassistant: Hi\n\nuser: How are you?"
  assert make_prompt("Hello").conversation == [{"role": "user", "content": "Hello"}]
  assert make_prompt(TURNS[:1]).text == "Hello"


@pytest.mark.parametrize(
  "content, message",
  [
    (TURNS[:2], "ends with the assistant"),
    ([], "without messages"),
    ("  \n", "empty"),
    ([{"content": "x"}], "message 0 .* needs a role"),
    (3, "neither a text nor a list"),
  ],
)
def test_unusable_prompts_are_refused(content, message):
  with pytest.raises(ValueError, match=message):
    make_prompt(content)


def test_defects_name_file_line_and_columns(tmp_path):
  bad = tmp_path / "bad.jsonl"
  bad.write_text('{"prompt": "fine"}\n{broken\n')
  with pytest.raises(ValueError, match=r"line 2 of .*bad\.jsonl is not JSON"):
    load_prompts(bad)
  bad.write_text('{"prompt": "fine"}\n{"other": "x"}\n')
  with pytest.raises(ValueError, match=r"row 1 of .*bad\.jsonl has no prompt.*\['other'\]"):
    load_prompts(bad)
  bad.write_text('{"a": "x"}\n')
  with pytest.raises(ValueError, match="instead of b"):
    load_prompts(bad, prompt_column="b")
  bad.write_text("\n")
  with pytest.raises(ValueError, match="holds no prompts"):
    load_prompts(bad)
  with pytest.raises(ValueError, match="no file"):
    load_prompts(tmp_path / "none.parquet")


def test_ids_depend_on_content_only_and_fit_a_key():
  first, second = (
    load_prompts(lambda: ["one", "two"]),
    load_prompts(lambda: ["two", "one", "three"]),
  )
  assert {p.text: p.id for p in first}.items() <= {p.text: p.id for p in second}.items()
  assert all(0 <= p.id < 2**31 for p in second)
  assert len({p.id for p in second}) == 3


def test_repeated_prompts_are_dropped_blind_to_case_and_space():
  assert [p.text for p in load_prompts(lambda: ["A  b", "a b", "a c", "A\tB "])] == ["A  b", "a c"]


def test_colliding_ids_are_told_apart():
  ids = [p.id for p in unique_prompts([Prompt(7, "a"), Prompt(7, "b"), Prompt(8, "c")])]
  assert ids == [7, 8, 9]


def test_limit_counts_distinct_prompts():
  assert [p.text for p in load_prompts(lambda: ["a", "a", "b", "c"], limit=2)] == ["a", "b"]
  with pytest.raises(ValueError, match="limit=0"):
    load_prompts(lambda: ["a"], limit=0)


def test_reward_inputs_repeat_each_prompt_for_its_rollouts():
  prompts = [make_prompt("a", {"answer": 1}), make_prompt(TURNS, {"level": 2})]
  texts, columns = reward_inputs(prompts, 2)
  assert texts == ["a", "a", prompts[1].text, prompts[1].text]
  assert columns["answer"] == [1, 1, None, None]
  assert columns["level"] == [None, None, 2, 2]
  assert columns["messages"][1:3] == [[{"role": "user", "content": "a"}], TURNS]
  assert reward_inputs(prompts[:1], 1) == (["a"], {"answer": [1]})
