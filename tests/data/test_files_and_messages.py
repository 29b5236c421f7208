"""Prompt files as editors, spreadsheets and scrapers write them; messages as APIs do."""

import gzip
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tea_jax.data import load_prompts, make_prompt

ROWS = [{"prompt": "first"}, {"prompt": "second"}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
BOM = b"\xef\xbb\xbf"


@pytest.mark.parametrize(
  "name, content",
  [
    ("a.jsonl", LINES),
    ("A.JSONL", LINES.replace(b"\n", b"\r\n\r\n")),
    ("a.ndjson", BOM + LINES),
    ("a.json", json.dumps(ROWS).encode()),
    ("a.csv", BOM + b"prompt\r\nfirst\r\nsecond\r\n"),
    ("a.txt", BOM + b"first\r\n\r\nsecond\r\n"),
    ("a.jsonl.gz", gzip.compress(LINES, mtime=0)),
    ("a.b.txt.GZ", gzip.compress(b"first\nsecond", mtime=0)),
  ],
)
def test_prompt_files_of_every_kind_are_read(tmp_path, name, content):
  (tmp_path / name).write_bytes(content)
  assert [prompt.text for prompt in load_prompts(tmp_path / name)] == ["first", "second"]


@pytest.mark.parametrize(
  "name, content, said",
  [
    ("a.jsonl", '{"prompt": "a"}\n{"prompt": "caf\u00e9"}\n'.encode("latin-1"), "line 2.*UTF-8"),
    ("a.txt", "first".encode("utf-16"), "line 1.*UTF-8"),
    ("a.csv", "prompt\ncaf\u00e9".encode("latin-1"), "UTF-8"),
    ("a.csv", b"prompt,x\na\n", "line 2"),
    ("a.jsonl", b'{"prompt": "ok"}\n{"prompt": "a\\ud800"}\n', r"row 1.*surrogate"),
    ("a.jsonl", b'{"prompt": "a", "x": ' + b"[" * 10**5 + b"]" * 10**5 + b"}", "line 1.*deep"),
    ("a.json", b'{"prompt": "a"}', "no list"),
    ("a.jsonl.gz", gzip.compress(LINES, mtime=0)[:20], "damaged"),
    ("a.parquet", b"PAR1 no", "Parquet"),
    ("a.xlsx", b"x", r"\.jsonl"),
    ("a.parquet.gz", b"x", r"\.jsonl"),
  ],
)
def test_damaged_and_foreign_files_are_refused_by_name_and_line(tmp_path, name, content, said):
  (tmp_path / name).write_bytes(content)
  with pytest.raises(ValueError, match=said) as caught:
    load_prompts(tmp_path / name)
  assert name in str(caught.value)


@pytest.mark.parametrize("name", ["no.jsonl", "./owner/name", "tests/nothing", "/a/b", "a/b/c"])
def test_what_is_not_there_is_never_asked_from_the_hub(name, monkeypatch):
  monkeypatch.setattr("tea_jax.data.prompts.read_hub", lambda *_: pytest.fail("asked the hub"))
  with pytest.raises(ValueError, match="there is no file"):
    load_prompts(name)


def test_rows_that_unpack_to_too_much_are_refused(tmp_path, monkeypatch):
  pa = pytest.importorskip("pyarrow")
  import pyarrow.parquet as pq

  monkeypatch.setattr("tea_jax.data.files._MOST_TEXT", 10**6)
  big = pa.DictionaryArray.from_arrays(pa.array([0] * 2000, pa.int32()), pa.array(["a" * 1000]))
  table = pa.table({"prompt": [f"p{i}" for i in range(2000)], "x": big})
  pq.write_table(table, tmp_path / "bomb.parquet")
  with pytest.raises(ValueError, match=r"bomb\.parquet unpacks"):
    load_prompts(tmp_path / "bomb.parquet")


class Frame:
  """As much of a pandas DataFrame as matters."""

  columns = ("prompt", "answer")

  def __iter__(self):
    return iter(self.columns)

  def to_dict(self, orient):
    assert orient == "records"
    return [{"prompt": "a", "answer": float("nan")}]


def test_data_frames_are_rows_and_not_their_columns():
  for source in (Frame(), Frame):
    (prompt,) = load_prompts(source)
    assert (prompt.text, prompt.columns) == ("a", {"answer": None})


@pytest.mark.parametrize(
  "source, line",
  [
    ("def f(:", 1),
    ("1/0", 1),
    ("\ndef f(): 1/0", 2),
    ("def f():\n  yield 'a'\n  raise KeyError(3)", 3),
    ("import sys\ndef f(): sys.exit(0)", 2),
  ],
)
def test_prompt_functions_that_fail_say_file_and_line(tmp_path, source, line):
  (tmp_path / "my_prompts.py").write_text(source)
  with pytest.raises(ValueError, match=rf"my_prompts\.py, line {line}\)"):
    load_prompts(f"{tmp_path}/my_prompts.py:f")


def test_endless_repeats_end(monkeypatch):
  monkeypatch.setattr("tea_jax.data.prompts._REPEATS", 100)

  def endless():
    while True:
      yield "same"

  assert [prompt.text for prompt in load_prompts(endless, limit=5)] == ["same"]


def user(content, **more):
  return [{"role": "user", "content": content, **more}]


def test_parts_of_text_are_joined():
  parts = [{"type": "text", "text": "How many?", "image": None}, {"type": "text", "text": "Count."}]
  assert make_prompt(user(parts)).text == "How many?\nCount."
  assert make_prompt(user("plain", name=None, tool_calls=[])).text == "plain"


@pytest.mark.parametrize(
  "content, more, said",
  [
    (None, {}, "no text: None"),
    (5, {}, "no text: 5"),
    ({"a": 1}, {}, "no text"),
    ([], {}, "no text"),
    ([{"type": "image_url", "image_url": "x"}], {}, "part that is no text"),
    ([{"type": "text", "text": None}], {}, "part that is no text"),
    ([{"type": "text", "text": "a", "cache": 1}], {}, "part that is no text"),
    ("a", {"tool_calls": [{"name": "get_time"}]}, "tool_calls"),
    ("a", {"name": "me"}, "name"),
    ("a", {"role": None}, "role"),
    ("a\ud800", {}, "surrogate"),
    (" ", {}, "without a word"),
  ],
)
def test_messages_that_are_no_text_are_refused_by_row(content, more, said):
  with pytest.raises(ValueError, match=f"row 7.*{said}"):
    make_prompt([{"role": "user", "content": content, **more}], where="row 7")


_json = st.recursive(
  st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=4),
  lambda inner: (
    st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["role", "content", "type", "text", "prompt", "x"]), inner)
  ),
  max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.fixed_dictionaries({"prompt": _json}) | _json, min_size=1, max_size=4))
def test_any_row_is_a_prompt_or_refused(tmp_path_factory, rows):
  file = tmp_path_factory.mktemp("rows") / "any.jsonl"
  file.write_text("".join(json.dumps(row) + "\n" for row in rows))
  try:
    prompts = load_prompts(file)
  except ValueError as error:
    event = str(error)
    assert "any.jsonl" in event
    return
  assert all(isinstance(prompt.text, str) and prompt.text.strip() for prompt in prompts)
