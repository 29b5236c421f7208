"""Calls that are scored as they end have the scores of the whole batch."""

import threading

import numpy as np
import pytest

from tea_jax.evaluation.scoring import Scorer
from tea_jax.evaluation.scoring_ahead import ScoringAhead
from tea_jax.rewards import WeightedReward
from tea_jax.runs.log import read_jsonl
from tests.evaluation import test_scoring as rows
from tests.training import tiny

# Two prompts at once, then one prompt's rollouts in two parts, then the rest.
CALLS = [
  (slice(0, 2), slice(0, 3)),
  (slice(2, 3), slice(0, 2)),
  (slice(2, 3), slice(2, 3)),
  (slice(3, 5), slice(0, 3)),
]


def _ahead(scorer, calls):
  data, chosen, rollouts = rows.make_batch(5)
  with ScoringAhead(scorer, data, chosen, rows.M, step=0) as ahead:
    for place in calls:
      fields = ("completion_tokens", "completion_lengths")
      ahead.add(*place, {name: getattr(rollouts, name)[place] for name in fields})
  return ahead.scores()


@pytest.mark.parametrize("weighted", [False, True])
def test_calls_give_the_scores_of_the_whole(tmp_path, weighted):
  length, odd = rows.Length(), rows.Odd()
  reward = WeightedReward({"a": (length, 2.0), "b": (odd, 0.5)}) if weighted else length
  scorer = Scorer(reward, rows.Tokenizer(), num_steps=1, folder=tmp_path)
  whole = scorer(*rows.make_batch(5), step=0)
  found = _ahead(scorer, CALLS)
  assert found is not None
  np.testing.assert_array_equal(found.rewards, whole.rewards)
  assert found.texts.tolist() == whole.texts.tolist()
  sizes = np.array([6, 2, 1, 6])
  assert found.metrics.pop("longest") == pytest.approx((sizes**2).sum() / sizes.sum())
  whole.metrics.pop("longest")
  assert found.metrics == whole.metrics


def test_one_call_and_other_rewards_are_left_to_the_scorer(tmp_path):
  whole = [(slice(0, 5), slice(0, 3))]
  for reward, calls in ((rows.Length(), whole), (lambda prompts, completions: [0.0], CALLS)):
    scorer = Scorer(reward, rows.Tokenizer(), num_steps=1, folder=tmp_path)
    assert _ahead(scorer, calls) is None


def test_a_call_that_cannot_be_scored_is_left_to_the_scorer(tmp_path):
  reward = rows.Length()
  reward.fail = True
  scorer = Scorer(reward, rows.Tokenizer(), num_steps=1, folder=tmp_path)
  assert _ahead(scorer, CALLS) is None
  assert not list(tmp_path.iterdir())


def test_calls_that_wait_are_dropped_when_sampling_fails(tmp_path):
  asked, go = [], threading.Event()

  class Slow(rows.Length):
    def __call__(self, prompts, completions, bonus, context):
      asked.append(len(prompts))
      assert go.wait(60)
      return super().__call__(prompts, completions, bonus, context)

  scorer = Scorer(Slow(), rows.Tokenizer(), num_steps=1, folder=tmp_path)
  data, chosen, rollouts = rows.make_batch(5)
  part = {"completion_tokens": rollouts.completion_tokens[:1]}
  part["completion_lengths"] = rollouts.completion_lengths[:1]

  def interrupted():
    with ScoringAhead(scorer, data, chosen, 3, step=0) as ahead:
      ahead.add(slice(0, 1), slice(0, 3), part)
      ahead.add(slice(1, 2), slice(0, 3), part)
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    interrupted()
  go.set()
  assert len(asked) <= 1


def test_a_run_scores_its_calls_ahead_and_logs_the_same(tmp_path):
  sizes = {True: [], False: []}

  class Reward:
    def __init__(self, row_wise):
      self.row_wise = row_wise

    def __call__(self, prompts, completions):
      sizes[self.row_wise].append(len(prompts))
      return tiny.reward(prompts, completions)

  for row_wise in sizes:
    # Memory for one group at a time.
    config = tiny.config(tmp_path / str(row_wise), steps=2, sampling={"memory_gb": 2e-5})
    tiny.run(config, tiny.policy(), reward=Reward(row_wise))
  assert sizes == {True: [8, 8, 8, 8], False: [16, 16]}
  logs = [read_jsonl(tmp_path / name / "metrics.jsonl") for name in ("True", "False")]
  assert logs[0] == logs[1]
