"""The user's own files: modules like any other, failures in one sentence with file and line."""

import sys

import pytest

from tea_jax.runtime.user_code import load_object

WITH_DATACLASS = """
from __future__ import annotations
import dataclasses, neighbour_of_mine
@dataclasses.dataclass
class Limits:
  longest: int = neighbour_of_mine.LONGEST
def score(): return Limits().longest
"""


def test_a_file_is_a_module_with_neighbours(tmp_path):
  (tmp_path / "neighbour_of_mine.py").write_text("LONGEST = 3\n")
  (tmp_path / "file_with_dataclass.py").write_text(WITH_DATACLASS)
  score = load_object(f"{tmp_path}/file_with_dataclass.py:score")
  assert score() == 3
  assert sys.modules[score.__module__].score is score  # as pickle and process pools want it


def test_a_file_runs_once_and_again_when_it_changed(tmp_path):
  file = tmp_path / "counts_its_runs.py"
  file.write_text(
    "import pathlib\npathlib.Path(__file__).with_suffix('.txt').open('a').write('x')\n"
    "def f(): return 1\n"
  )
  first = load_object(f"{file}:f")
  assert load_object(f"{file}:f") is first
  assert file.with_suffix(".txt").read_text() == "x"
  file.write_text("def f(): return 2\n")
  assert load_object(f"{file}:f")() == 2


def test_a_file_called_like_a_module_does_not_replace_it(tmp_path):
  import json

  (tmp_path / "json.py").write_text("def f(): return 1\n")
  assert load_object(f"{tmp_path}/json.py:f")() == 1
  assert sys.modules["json"] is json


@pytest.mark.parametrize(
  "source, line",
  [
    ("x = 1\ndef f(:", 2),
    ("\n\n1 / 0", 3),
    ("import sys\nsys.exit(0)", 2),
    ("raise Exception('a\\nb')", 1),
    ("def g(): raise KeyError('k')\n\ng()", 1),
  ],
)
def test_failures_are_one_sentence_with_file_and_line(tmp_path, source, line):
  (tmp_path / "broken_file.py").write_text(source)
  with pytest.raises(ValueError, match=rf"broken_file\.py, line {line}\)$") as caught:
    load_object(f"{tmp_path}/broken_file.py:f")
  assert "\n" not in str(caught.value)
  assert "broken_file" not in sys.modules
