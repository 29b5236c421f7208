"""The pool: every rollout is made once, kept on disk, and found again."""

import numpy as np
import pytest

from tea_jax.scaling import best_of_n, scaling_law_search
from tea_jax.scaling.base import Schedule
from tea_jax.scaling.generators import Completion, Request
from tea_jax.scaling.rollout_pool import RolloutPool

pytest.importorskip("pyarrow")


class Letters:
  """Answers of four letters; every fifth ends after one."""

  group_size = 4

  def __init__(self):
    self.requests: list[Request] = []

  def __call__(self, requests):
    self.requests += requests
    return [[self.answer(request, i) for i in range(4)] for request in requests]

  def answer(self, request, i):
    number = request.prompt + 7 * request.node + 4 * request.group + i
    letters = [*request.prefix, *(chr(97 + (number * k) % 26) for k in range(1, 5))]
    length = max(len(request.prefix) + 1, 1 if number % 5 == 0 else 4)
    return Completion("".join(letters[:length]), tuple(letters[:length]), number % 5 == 0)


def score(prompts, texts):
  values = [sum(map(ord, text)) % 23 + p for p, text in zip(prompts, texts, strict=True)]
  return np.where(np.array(values) % 7 == 3, np.nan, values)


def pool(generator=None, scorer=score, **options):
  return RolloutPool(generator or Letters(), scorer, 3, state_length=2, **options)


def test_searches_share_their_rollouts():
  generator = Letters()
  shared = pool(generator)
  plain = best_of_n(shared, 24)
  made = len(generator.requests)
  assert made == 3 * 6
  again = best_of_n(shared, 20)
  np.testing.assert_array_equal(again.rewards, plain.rewards[:, :20])
  assert len(generator.requests) == made
  search = scaling_law_search(shared, 24, schedule=Schedule(8, 2))
  assert all(request.node > 0 for request in generator.requests[made:])
  np.testing.assert_array_equal(search.rewards[:, :8], plain.rewards[:, :8])


def test_answers_tokens_and_states_belong_to_the_search():
  shared = pool()
  result = scaling_law_search(shared, 24, schedule=Schedule(8, 2))
  tokens = shared.generated_tokens(result)
  for p, answer in enumerate(shared.answers(result)):
    assert answer is not None
    assert answer.reward == result.best_reward[p]
    for column in np.flatnonzero(result.nodes[p] > 0):
      node, number = int(result.nodes[p, column]), int(result.rollouts[p, column])
      found = shared.rollout(p, node, number).completion
      pilot = shared.rollout(p, 0, node - 1).completion
      assert found.tokens[:2] == pilot.tokens[:2]
      assert tokens[p, column] == len(found.tokens) - 2
  assert not shared.extendable(8).all()


def test_a_scorer_that_dies_loses_nothing_scored(tmp_path):
  calls = []

  def dying(prompts, texts):
    calls.append(len(texts))
    if len(calls) == 4:
      raise ConnectionError("the server died")
    return score(prompts, texts)

  options = {"folder": tmp_path, "groups_per_part": 2}
  with pytest.raises(ConnectionError):
    best_of_n(pool(scorer=dying, **options), 24)
  generator = Letters()
  again = pool(generator, **options)
  result = best_of_n(again, 24)
  assert len(generator.requests) == 18 - 3 * 2
  np.testing.assert_array_equal(result.rewards, best_of_n(pool(), 24).rewards)
  third = Letters()
  np.testing.assert_array_equal(best_of_n(pool(third, **options), 24).rewards, result.rewards)
  assert not third.requests


def test_progress_counts_what_is_new(tmp_path):
  counts = []
  best_of_n(pool(progress=counts.append, groups_per_part=5), 8)
  assert counts == [20, 4]


def test_broken_promises_are_named():
  class Short(Letters):
    def __call__(self, requests):
      return [group[:3] for group in super().__call__(requests)]

  with pytest.raises(ValueError, match=r"groups of \[3\] completions for 6 requests of 4"):
    best_of_n(pool(Short()), 8)
  with pytest.raises(ValueError, match=r"rewards of shape \(1,\) for 24 texts"):
    best_of_n(pool(scorer=lambda prompts, texts: [0.0]), 8)
  with pytest.raises(ValueError, match="state_length=0"):
    RolloutPool(Letters(), score, 3, state_length=0)
