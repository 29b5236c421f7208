"""Damaged records of an evaluation: the same numbers, or one sentence that names the folder."""

import json

import numpy as np
import pytest

pytest.importorskip("pyarrow")

import pyarrow as pa

from tea_jax.evaluation.record_parts import read_table, write_table
from tea_jax.evaluation.records import RecordFolder, Samples, read_records
from tests.fuzzing import damaged, damaged_value, numbers, read_or_refused

SPEC = {"policy": "p", "num_prompts": 3, "num_samples": 4, "sampling": {"temperature": 1.0}}
PROMPTS = ["one", "two", "three é"]
REWARDS = np.arange(12.0).reshape(3, 4)


@pytest.fixture
def folder(tmp_path):
  made = RecordFolder(tmp_path / "records", SPEC)
  texts = [[f"{prompt} {i}" for i in range(4)] for prompt in PROMPTS]
  samples = Samples(texts, np.full((3, 4), 5), np.ones((3, 4), bool))
  made.save(0, 0, [7, 8, 9], PROMPTS, samples, REWARDS)
  return made


def test_damaged_bytes_of_a_part_change_no_number(folder):
  raw = folder.part(0).read_bytes()
  for rng in numbers():
    folder.part(0).write_bytes(damaged(raw, rng))
    with read_or_refused(ValueError, names="records"):
      found = read_records(folder.path)
      np.testing.assert_array_equal(found.rewards, REWARDS)
      assert found.prompts == PROMPTS
    with read_or_refused(ValueError, names="records"):
      folder.is_done(0, [7, 8, 9], PROMPTS)


def test_columns_with_other_values_are_read_or_refused(folder):
  table = read_table(folder.part(0))
  good = table.to_pydict()
  for rng in numbers():
    columns = damaged_value(good, rng)
    try:
      odd = pa.table(columns)
    except (pa.ArrowException, OverflowError, TypeError, AttributeError, UnicodeError):
      continue  # no such table
    if rng.random() < 0.7:  # right types, so that the values are looked at
      try:
        odd = odd.cast(table.schema)
      except (pa.ArrowException, ValueError):
        continue
    write_table(folder.part(0), odd)
    with read_or_refused(ValueError, names="records"):
      found = read_records(folder.path)
      assert found.rewards.shape == (3, 4)
    with read_or_refused(ValueError, names="records"):
      folder.is_done(0, [7, 8, 9], PROMPTS)


@pytest.mark.parametrize("column", ["rollout", "prompt_index", "length"])
def test_negative_numbers_in_a_part_are_refused(folder, column):
  table = read_table(folder.part(0))
  place = table.schema.get_field_index(column)
  write_table(folder.part(0), table.set_column(place, column, pa.array([-1] * 12, pa.int32())))
  with pytest.raises(ValueError, match=f"part-00000.*negative {column}"):
    read_records(folder.path)


def test_damaged_specs_are_read_or_refused(folder):
  file = folder.path / "spec.json"
  raw = file.read_bytes()
  for rng in numbers():
    if rng.random() < 0.5:
      file.write_bytes(damaged(raw, rng))
    else:
      file.write_text(json.dumps(damaged_value(SPEC, rng)))
    with read_or_refused(ValueError, names="records"):
      assert read_records(folder.path).rewards.shape == (3, 4)
    with read_or_refused(ValueError, names="records"):
      RecordFolder(folder.path, SPEC)
    file.write_bytes(raw)
