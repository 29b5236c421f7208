"""Evaluation of a policy: stored whole, resumed exactly, nothing lost when a reward fails."""

import types

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest

from tea_jax.data import EncodedPrompts, make_prompt
from tea_jax.evaluation.evaluate import engine_sampler, evaluate_policy, prompts_of_a_call
from tea_jax.evaluation.records import Samples, read_records
from tea_jax.rewards import RewardError
from tea_jax.rollout.types import Rollouts
from tea_jax.runs.log import read_jsonl

PROMPTS = [make_prompt(f"prompt {number}", {"bonus": number}) for number in range(7)]


class TableSampler:
  """Completion j of prompt i is the text "i j"; counts its calls."""

  def __init__(self, num_samples=4):
    self.num_samples = num_samples
    self.calls = []

  def __call__(self, indices):
    self.calls.append(list(indices))
    numbers = range(self.num_samples)
    lengths = np.array([[i + j + 1 for j in numbers] for i in indices])
    return Samples([[f"{i} {j}" for j in numbers] for i in indices], lengths, lengths < 6)


def sum_reward(prompts, completions, bonus):
  return [sum(map(int, text.split())) + 100 * extra for text, extra in zip(completions, bonus)]


EXPECTED = np.array([[i + j + 100 * i for j in range(4)] for i in range(7)], np.float64)


def evaluate(folder, sampler=None, reward=sum_reward, **options):
  options = {"num_samples": 4, "prompts_per_part": 3, **options}
  return evaluate_policy(sampler or TableSampler(), PROMPTS, reward, folder=folder, **options)


def check(records):
  np.testing.assert_array_equal(records.rewards, EXPECTED)
  assert records.prompts == [prompt.text for prompt in PROMPTS]
  assert records.prompt_ids.tolist() == [prompt.id for prompt in PROMPTS]
  assert records.samples.completions[6] == ["6 0", "6 1", "6 2", "6 3"]
  np.testing.assert_array_equal(records.samples.lengths[6], [7, 8, 9, 10])
  assert records.samples.finished[0].tolist() == [True] * 4
  np.testing.assert_allclose(records.mean_length, 1 + 3 + 1.5)


def test_records_hold_every_completion_and_its_reward(tmp_path):
  check(evaluate(tmp_path))
  check(read_records(tmp_path))
  assert sorted(p.name for p in tmp_path.iterdir()) == [
    "part-00000.parquet",
    "part-00001.parquet",
    "part-00002.parquet",
    "spec.json",
  ]


def test_the_part_size_does_not_change_the_records(tmp_path):
  for size in (1, 7, 100):
    check(evaluate(tmp_path / str(size), prompts_per_part=size))


def test_finished_parts_are_not_sampled_again(tmp_path):
  evaluate(tmp_path)
  (tmp_path / "part-00001.parquet").unlink()
  sampler = TableSampler()
  check(evaluate(tmp_path, sampler))
  assert sampler.calls == [[3, 4, 5]]


def test_damaged_part_is_made_again(tmp_path):
  evaluate(tmp_path)
  part = tmp_path / "part-00002.parquet"
  part.write_bytes(part.read_bytes()[:-40])
  check(evaluate(tmp_path))


def test_failing_reward_loses_no_completion(tmp_path):
  def fails_late(prompts, completions, bonus):
    scores = sum_reward(prompts, completions, bonus)
    return [float("nan") if text == "4 2" else score for text, score in zip(completions, scores)]

  sampler = TableSampler()
  with pytest.raises(RewardError, match=r"prompt 1 \('prompt 4'\), rollout 2.*counted from 3"):
    evaluate(tmp_path, sampler, fails_late, spec={})
  assert sampler.calls == [[0, 1, 2], [3, 4, 5]]
  assert pq.read_table(tmp_path / "part-00001.unscored.parquet").num_rows == 12
  kept = read_jsonl(tmp_path / "part-00001.failed.jsonl")
  assert [line["rewards"]["fails_late"] == "nan" for line in kept].index(True) == 6
  assert len(kept) == 12
  fails_late.__name__ = "sum_reward"
  with pytest.raises(ValueError, match="reward: 'fails_late' -> 'sum_reward'"):
    evaluate(tmp_path)
  repaired = sum_reward
  repaired.name = "fails_late"
  try:
    check(evaluate(tmp_path, sampler, repaired))
  finally:
    del repaired.name
  assert sampler.calls == [[0, 1, 2], [3, 4, 5], [6]]
  assert not list(tmp_path.glob("*.unscored.parquet"))
  assert not list(tmp_path.glob("*.failed.jsonl"))


def test_interruption_while_writing_leaves_no_part(tmp_path, monkeypatch):
  write = pq.write_table

  def disk_full(table, path, **options):
    write(table, path, **options)
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(pq, "write_table", disk_full)
  with pytest.raises(OSError, match="No space left"):
    evaluate(tmp_path)
  assert [p.name for p in tmp_path.iterdir()] == ["spec.json"]
  monkeypatch.undo()
  check(evaluate(tmp_path))


def test_not_scored_completions_are_kept_as_nan(tmp_path):
  def partly(prompts, completions):
    return [None if text.endswith("3") else 1.0 for text in completions]

  records = evaluate(tmp_path, reward=partly)
  np.testing.assert_array_equal(np.isnan(records.rewards), [[False, False, False, True]] * 7)


@pytest.mark.parametrize(
  "change", [{"num_samples": 2}, {"spec": {"policy": "other"}}, {"prompts_per_part": 2}]
)
def test_records_of_another_evaluation_are_refused(tmp_path, change):
  evaluate(tmp_path)
  with pytest.raises(ValueError, match="another evaluation"):
    evaluate(tmp_path, **change)


def test_unfinished_records_cannot_be_read(tmp_path):
  evaluate(tmp_path)
  (tmp_path / "part-00002.parquet").unlink()
  with pytest.raises(ValueError, match="6 of 7 prompts"):
    read_records(tmp_path)
  with pytest.raises(ValueError, match="holds no records"):
    read_records(tmp_path / "none")


def test_sampler_that_breaks_its_promise_is_an_error(tmp_path):
  with pytest.raises(ValueError, match="4 each were asked for"):
    evaluate(tmp_path, TableSampler(num_samples=3))


class FakeEngine:
  """Token j of a completion is a function of prompt id, rollout and key; records call shapes."""

  def __init__(self):
    tokenizer = types.SimpleNamespace(
      batch_decode=lambda rows, skip_special_tokens: [" ".join(map(str, row)) for row in rows]
    )
    self.policy = types.SimpleNamespace(tokenizer=tokenizer)
    self.shapes = set()

  def generate(self, params, prompts, *, key, num_rollouts, prompt_ids):
    self.shapes.add((len(prompts), num_rollouts))
    part = int(jax.random.key_data(key)[-1]) % 97
    ids = np.asarray(prompt_ids)[:, None] % 50
    first = ids + 100 * np.arange(num_rollouts)
    lengths = np.full(first.shape, 2)
    lengths[:, 0] = 1
    tokens = np.stack([first, np.full_like(first, part), np.full_like(first, 9)], axis=-1)
    return Rollouts(None, None, tokens, lengths, lengths > 1, None, None)


def test_calls_have_as_many_rows_as_the_processor_can_feed():
  def rows(num_prompts: int, prompts_per_step: int, num_rollouts: int) -> int:
    return num_rollouts * prompts_of_a_call(
      num_prompts, prompts_per_step=prompts_per_step, num_rollouts=num_rollouts
    )

  assert rows(64, 1, 32) == rows(64, 2, 32) == 128
  assert rows(3, 1, 32) == 96, "no more prompts than there are"
  assert rows(64, 8, 64) == 512, "never less than a training step"
  assert rows(64, 1, 48) == 96, "whole groups only"
  assert rows(64, 1, 256) == 256, "whole groups only"


def test_engine_sampler_decodes_valid_tokens_in_training_shapes():
  encoded = EncodedPrompts(PROMPTS, [[1, 2]] * 7, [])
  key = jax.random.key(0)
  engine = FakeEngine()
  whole = engine_sampler(engine, {}, encoded, key=key, num_samples=6)([2, 5, 6])
  assert engine.shapes == {(3, 6)}
  assert whole.completions[1][0] == str(PROMPTS[5].id % 50)
  assert whole.completions[1][3].split()[0] == str(PROMPTS[5].id % 50 + 300)
  assert whole.lengths.shape == whole.finished.shape == (3, 6)
  engine = FakeEngine()
  sampler = engine_sampler(
    engine, {}, encoded, key=key, num_samples=6, prompts_per_call=2, rollouts_per_call=4
  )
  parts = sampler([2, 5, 6])
  assert engine.shapes == {(2, 4)}
  assert [len(row) for row in parts.completions] == [6, 6, 6]
  assert parts.completions[2] == sampler([6]).completions[0]
  assert len({text.split()[1] for text in parts.completions[0] if " " in text}) == 2
