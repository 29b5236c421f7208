"""The order of prompts is a function of key, epoch and position, nothing else."""

import itertools
import json

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tea_jax.data import IteratorState, PromptIterator

KEY = jax.random.key(3)


def take(iterator, count):
  return [batch.tolist() for batch in itertools.islice(iterator, count)]


def test_epoch_order_is_the_permutation_of_the_folded_key():
  iterator = PromptIterator(12, batch_size=4, key=KEY)
  for epoch in range(3):
    expected = jax.random.permutation(jax.random.fold_in(KEY, epoch), 12)
    np.testing.assert_array_equal(np.concatenate(take(iterator, 3)), expected)


def test_epochs_and_keys_differ():
  orders = [
    np.concatenate(take(PromptIterator(50, batch_size=10, key=jax.random.key(seed)), 10))
    for seed in (0, 1)
  ]
  assert not np.array_equal(orders[0], orders[1])
  assert not np.array_equal(orders[0][:50], orders[0][50:])


@given(st.integers(1, 13), st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_resuming_from_json_continues_the_same_sequence(batch_size, steps):
  whole = take(PromptIterator(13, batch_size=batch_size, key=KEY), steps + 6)
  interrupted = PromptIterator(13, batch_size=batch_size, key=KEY)
  take(interrupted, steps)
  saved = json.loads(json.dumps(interrupted.state_dict()))
  resumed = PromptIterator(13, batch_size=batch_size, key=KEY)
  resumed.load_state_dict(saved)
  assert take(resumed, 6) == whole[steps:]


def test_no_prompt_occurs_twice_in_a_batch_and_every_epoch_is_whole_batches():
  iterator = PromptIterator(10, batch_size=4, key=KEY)
  for _ in range(5):
    epoch = np.concatenate(take(iterator, 2))
    assert len(set(epoch.tolist())) == 8
  assert iterator.state == IteratorState(epoch=4, position=8)


def test_changing_a_batch_does_not_change_the_order():
  iterator = PromptIterator(8, batch_size=8, key=KEY)
  next(iterator)[:] = 0
  iterator.state = IteratorState()
  assert len(set(next(iterator).tolist())) == 8


def test_state_of_other_data_is_refused():
  saved = PromptIterator(10, batch_size=4, key=KEY).state_dict()
  with pytest.raises(ValueError, match="num_prompts=10, but the run has num_prompts=12"):
    PromptIterator(12, batch_size=4, key=KEY).load_state_dict(saved)
  with pytest.raises(ValueError, match="batch_size=4, but the run has batch_size=5"):
    PromptIterator(10, batch_size=5, key=KEY).load_state_dict(saved)


@pytest.mark.parametrize("batch_size", [0, 11])
def test_impossible_batch_size_is_refused(batch_size):
  with pytest.raises(ValueError, match="number of prompts, 10"):
    PromptIterator(10, batch_size=batch_size, key=KEY)
