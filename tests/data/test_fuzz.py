"""Damaged prompt files: prompts, or one sentence that names the file."""

import gzip
import json

import pytest

from tea_jax.data import load_prompts
from tests.fuzzing import damaged, damaged_value, numbers, read_or_refused

ROWS = [
  {"prompt": "What is 1 + 1?", "answer": "2", "tests": ["a", {"b": 1}]},
  {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "é?"}]},
  {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}], "level": 3},
]
FILES = {
  "p.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS).encode(),
  "p.json": json.dumps(ROWS, indent=1).encode(),
  "p.csv": b'prompt,answer\r\n"one, ""two""",1\r\nthree,3\r\n',
  "p.txt": "one\ntwo é\nthree\n".encode(),
}


def _read(file):
  with read_or_refused(ValueError, names=file.name):
    prompts = load_prompts(str(file))
    assert all(prompt.text.strip() and prompt.text.encode() for prompt in prompts)


@pytest.mark.parametrize("name", [*FILES, "p.jsonl.gz", "p.parquet"])
def test_damaged_bytes_of_a_prompt_file(name, tmp_path):
  file = tmp_path / name
  if name.endswith(".parquet"):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    table = pa.table({"prompt": [f"prompt {i}" for i in range(40)], "n": list(range(40))})
    pyarrow.parquet.write_table(table, file)
    raw = file.read_bytes()
  elif name.endswith(".gz"):
    raw = gzip.compress(FILES["p.jsonl"] * 20, mtime=0)
  else:
    raw = FILES[name]
  for rng in numbers():
    file.write_bytes(damaged(raw, rng))
    _read(file)


def test_damaged_rows_of_a_prompt_file(tmp_path):
  file = tmp_path / "p.jsonl"
  for rng in numbers():
    rows = damaged_value(ROWS, rng)
    rows = rows if isinstance(rows, list) else [rows]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    _read(file)
