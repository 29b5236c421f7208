"""Shares of several processes are scored as the whole batch is."""

import numpy as np
import pytest

from tea_jax.data import EncodedPrompts, Prompt
from tea_jax.evaluation.scoring import Scorer
from tea_jax.rewards import RewardError, WeightedReward
from tea_jax.rollout.types import Rollouts
from tea_jax.runtime import processes

M = 3


class Tokenizer:
  def batch_decode(self, rows, skip_special_tokens):
    del skip_special_tokens
    return [" ".join(map(str, row)) for row in rows]


class Length:
  row_wise = True
  fail = False

  def __call__(self, prompts, completions, bonus, context):
    if self.fail and "7" in prompts:
      raise OSError("no answer")
    context.metrics["longest"] = float(len(prompts))
    return [len(text) + extra for text, extra in zip(completions, bonus)]


class Odd:
  row_wise = True

  def __call__(self, prompts, completions):
    return [None if len(text) % 2 else 1.0 for text in completions]


def make_batch(size):
  prompts = [Prompt(id=i, text=str(i), columns={"bonus": 10 * i}) for i in range(9)]
  data = EncodedPrompts(prompts, [[1]] * 9, [])
  lengths = np.random.default_rng(0).integers(1, 5, (size, M))
  tokens = np.arange(size * M * 4).reshape(size, M, 4)
  zeros = np.zeros((size, M, 4), np.float32)
  rollouts = Rollouts(
    np.ones((size, 1), np.int32),
    np.ones(size, np.int32),
    tokens,
    lengths,
    lengths < 4,
    zeros,
    zeros,
  )
  return data, np.arange(9)[::-1][:size], rollouts


def _as_processes(monkeypatch, count, scorer, batch):
  """The scores of each of `count` processes that exchange what they found."""

  class Pause(Exception):
    pass

  def pause(value):
    found.append(value)
    raise Pause

  found: list = []
  monkeypatch.setattr(processes, "several", lambda: True)
  monkeypatch.setattr(processes, "count", lambda: count)
  monkeypatch.setattr(processes, "exchange", pause)
  for index in range(count):
    monkeypatch.setattr(processes, "index", lambda index=index: index)
    with pytest.raises(Pause):
      scorer(*batch, step=0)
  monkeypatch.setattr(processes, "exchange", lambda value: found)
  monkeypatch.setattr(processes, "on_first", lambda function, *arguments: function(*arguments))
  return scorer(*batch, step=0)


@pytest.mark.parametrize("count", [2, 3, 8])
@pytest.mark.parametrize("weighted", [False, True])
def test_shares_give_the_scores_of_the_whole(tmp_path, monkeypatch, count, weighted):
  reward = WeightedReward({"a": (Length(), 2.0), "b": (Odd(), 0.5)}) if weighted else Length()
  scorer = Scorer(reward, Tokenizer(), num_steps=1, folder=tmp_path)
  whole = scorer(*make_batch(5), step=0)
  shared = _as_processes(monkeypatch, count, scorer, make_batch(5))
  np.testing.assert_array_equal(shared.rewards, whole.rewards)
  assert shared.texts.tolist() == whole.texts.tolist()
  # What a reward logs of its share is averaged over the prompts.
  sizes = np.diff([5 * part // count for part in range(count + 1)])
  assert shared.metrics.pop("longest") == pytest.approx(float((sizes**2).sum() * M / 5))
  whole.metrics.pop("longest")
  assert shared.metrics == whole.metrics


def test_a_share_that_failed_is_told_as_of_the_whole_batch(tmp_path, monkeypatch):
  reward = Length()
  reward.fail = True
  scorer = Scorer(reward, Tokenizer(), num_steps=1, folder=tmp_path)
  with pytest.raises(RewardError, match=r"no answer.*completions of this call are in"):
    _as_processes(monkeypatch, 2, scorer, make_batch(5))
  assert len((tmp_path / "unscored_step_0.jsonl").read_text().splitlines()) >= 5 * M


def test_other_rewards_are_called_once_for_all(tmp_path, monkeypatch):
  calls = []

  def reward(prompts, completions):
    calls.append(len(prompts))
    return [0.0] * len(prompts)

  monkeypatch.setattr(processes, "several", lambda: True)
  monkeypatch.setattr(processes, "on_first", lambda function, *arguments: function(*arguments))
  Scorer(reward, Tokenizer(), num_steps=1, folder=tmp_path)(*make_batch(5), step=0)
  assert calls == [5 * M]
