"""Shares of several processes, of which these tests play one after the other."""

import numpy as np
import pytest

from tea_jax.evaluation.shares import in_shares, shared_scores
from tea_jax.rewards import RewardError, row_wise
from tea_jax.runtime import processes


@pytest.fixture
def play(monkeypatch):
  """`play(count, function)`: what the function returns in each of so many processes."""

  def run(count, function):
    monkeypatch.setattr(processes, "count", lambda: count)
    sent = []

    def send(value):
      sent.append(value)
      raise StopIteration

    for process in range(count):
      monkeypatch.setattr(processes, "index", lambda process=process: process)
      monkeypatch.setattr(processes, "exchange", send)
      with pytest.raises(StopIteration):
        function()
    monkeypatch.setattr(processes, "exchange", lambda value: sent)
    monkeypatch.setattr(processes, "on_first", lambda score, *arguments: score(*arguments))
    return function()

  return run


@pytest.mark.parametrize("count, processes_", [(5, 2), (2, 3), (1, 4), (6, 3)])
def test_each_group_is_scored_once_and_an_empty_share_never(play, count, processes_):
  def score(first, stop):
    assert first < stop
    return list(range(first, stop))

  shares = play(processes_, lambda: in_shares(count, score))
  assert [group for share in shares for group in share] == list(range(count))
  assert len(shares) == min(count, processes_)


def test_one_share_that_fails_leaves_all_to_the_first_process(play):
  def score(first, stop):
    if first == 2 and stop == 4:
      raise RewardError("no score", name="unsure")
    return np.arange(first, stop)

  assert play(2, lambda: in_shares(4, score)) is None
  reward = row_wise(lambda prompts, completions: [0.0] * len(prompts))
  assert play(2, lambda: shared_scores(reward, 4, score)).tolist() == [0, 1, 2, 3]


def test_one_process_has_no_shares():
  assert in_shares(3, lambda first, stop: first) is None
