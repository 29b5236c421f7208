"""Groups from the rollout engine of a tiny model."""

import jax
import pytest

from tea_jax.rollout.engine import RolloutEngine
from tea_jax.rollout.sampling import SamplingConfig
from tea_jax.scaling.generators import EngineGenerator, Request
from tests.training.tiny import policy as tiny_policy


@pytest.fixture(scope="module")
def policy():
  return tiny_policy()


def make(policy, **options):
  def engine(length):
    return RolloutEngine(policy, SamplingConfig(max_completion_length=length, stop_tokens=()))

  options = {"max_length": 6, "group_size": 2, "rows_per_call": 4, **options}
  return EngineGenerator(engine, policy.params, [[3, 4], [5]], key=jax.random.key(0), **options)


def test_groups_do_not_depend_on_their_call(policy):
  requests = [Request(0, 0, (), 0), Request(1, 0, (), 0), Request(0, 0, (), 1)]
  together = make(policy)(requests)
  alone = [make(policy)([request])[0] for request in requests]
  assert [[c.tokens for c in group] for group in together] == [
    [c.tokens for c in group] for group in alone
  ]
  assert len({c.tokens for group in together for c in group}) > 3


def test_states_are_continued_up_to_the_maximum_length(policy):
  generate = make(policy)
  ((root, _),) = generate([Request(0, 0, (), 0)])
  states = [
    Request(0, 1, root.tokens[:2], 0),
    Request(0, 0, (), 1),
    Request(0, 2, root.tokens[:2], 0),
  ]
  first, fresh, second = generate(states)
  for answer in (*first, *second):
    assert answer.tokens[:2] == root.tokens[:2]
    assert len(answer.tokens) == 6
  assert first != second
  assert len(fresh[0].tokens) == 6


def test_impossible_sizes_are_refused(policy):
  with pytest.raises(ValueError, match="group_size=8"):
    make(policy, group_size=8)
  with pytest.raises(ValueError, match="leaves nothing of max_length=6"):
    make(policy)([Request(0, 1, (1,) * 6, 0)])
