"""Stored records are of this evaluation, whole, or they are named."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tea_jax.data import make_prompt
from tea_jax.evaluation.evaluate import evaluate_policy
from tea_jax.evaluation.records import Samples

VALUES = np.random.default_rng(0).normal(size=(4, 16)).round(3)


class Sampler:
  def __init__(self):
    self.calls = 0

  def __call__(self, indices):
    self.calls += 1
    texts = [[repr(float(x)) for x in VALUES[i]] for i in indices]
    return Samples(texts, np.ones((len(indices), 16), int), np.ones((len(indices), 16), bool))


def score(prompts, completions):
  return [float(c) for c in completions]


def twice(prompts, completions):
  return [2 * float(c) for c in completions]


def with_column(prompts, completions, answer):
  return [float(c) * a for c, a in zip(completions, answer)]


def evaluate(folder, reward=score, sampler=None, answers=(1, 1, 1, 1)):
  prompts = [make_prompt(f"p{i}", {"answer": answer}) for i, answer in enumerate(answers)]
  sampler = sampler or Sampler()
  reward.name = "mine"  # records tell rewards apart by name first
  return evaluate_policy(
    sampler, prompts, reward, folder=folder, num_samples=16, prompts_per_part=2
  ).rewards


def test_corrected_code_and_answers_score_the_stored_completions_anew(tmp_path):
  np.testing.assert_array_equal(evaluate(tmp_path), VALUES)
  sampler = Sampler()
  np.testing.assert_array_equal(evaluate(tmp_path, twice, sampler), 2 * VALUES)
  np.testing.assert_array_equal(evaluate(tmp_path, with_column, sampler), VALUES)
  scaled = evaluate(tmp_path, with_column, sampler, answers=(1, 3, 1, 1))
  np.testing.assert_array_equal(scaled, VALUES * np.array([[1], [3], [1], [1]]))
  assert sampler.calls == 0


def test_any_flipped_bit_is_found_and_its_part_made_again(tmp_path):
  expected, part = evaluate(tmp_path), tmp_path / "part-00000.parquet"
  raw = part.read_bytes()
  for position in range(4, len(raw), max(1, len(raw) // 60)):
    part.write_bytes(raw[:position] + bytes([raw[position] ^ 16]) + raw[position + 1 :])
    try:
      np.testing.assert_array_equal(evaluate(tmp_path), expected)
    except ValueError as error:
      event = str(error)
      assert "part-00000" in event
      part.write_bytes(raw)


@pytest.mark.parametrize("content", [b"", b"null", b"[]", b"3", b"\xff", b"[" * 100_000])
def test_a_malformed_spec_is_named(tmp_path, content):
  evaluate(tmp_path)
  (tmp_path / "spec.json").write_bytes(content)
  with pytest.raises(ValueError, match=r"spec\.json"):
    evaluate(tmp_path)


@pytest.mark.parametrize(
  "column, value", [("prompt", "other"), ("completion", None), ("reward", np.inf), ("length", -5)]
)
def test_values_that_no_evaluation_writes_are_named(tmp_path, column, value):
  evaluate(tmp_path)
  part = tmp_path / "part-00000.parquet"
  table = pq.read_table(part)
  place, kind = table.schema.get_field_index(column), table.schema.field(column).type
  pq.write_table(table.set_column(place, column, pa.array([value] * 32, kind)), part)
  with pytest.raises(ValueError, match="part-00000"):
    evaluate(tmp_path)


def test_another_evaluation_is_still_refused(tmp_path):
  evaluate(tmp_path)
  spec = json.loads((tmp_path / "spec.json").read_text())
  (tmp_path / "spec.json").write_text(json.dumps(spec | {"seed": 3}))
  with pytest.raises(ValueError, match="another evaluation"):
    evaluate(tmp_path)
