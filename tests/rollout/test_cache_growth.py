"""Caches that grow while a batch decodes: the same tokens, and no place read before its time."""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tea_jax.rollout import cache_growth
from tea_jax.rollout.cache_growth import cache_sizes
from tea_jax.rollout.engine import RolloutEngine
from tea_jax.rollout.sampling import SamplingConfig
from tests.models import tiny

SMALL = dataclasses.replace(tiny.LLAMA, num_layers=1)
LONG = SamplingConfig(max_completion_length=40, stop_tokens=())
PROMPTS = [[1, 2, 3], [4], [5, 6]]


@given(st.integers(1, 600), st.integers(1, 8))
def test_sizes_grow_to_the_whole_and_waste_little(length, count):
  sizes = cache_sizes(length, count)
  assert sizes[-1] == length
  assert len(sizes) <= count
  assert list(sizes) == sorted(set(sizes))
  assert sizes[0] <= length / count + 8


def _generate(sampling, *, model=SMALL, progress=None, segment=8):
  policy = tiny.tiny_policy(model)
  engine = RolloutEngine(policy, sampling, segment=segment)
  options = {"key": jax.random.key(3), "num_rollouts": 5, "progress": progress}
  return engine.generate(policy.params, PROMPTS, **options)


def assert_same(found, expected):
  for name in ("completion_tokens", "completion_lengths", "finished"):
    np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
  for name in ("logprobs", "sampling_logprobs"):  # other shapes change last bits of logits
    np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
  "sampling",
  [
    pytest.param(LONG, id="to the limit"),
    pytest.param(
      dataclasses.replace(LONG, stop_tokens=tuple(range(0, 97, 12)), compactions=2), id="compacted"
    ),
  ],
)
@pytest.mark.parametrize("buckets", [2, 5])
def test_growing_caches_draw_the_same_tokens(sampling, buckets):
  whole = dataclasses.replace(sampling, compactions=0)
  assert_same(_generate(dataclasses.replace(sampling, cache_buckets=buckets)), _generate(whole))


@pytest.mark.slow
def test_a_window_over_the_past_crosses_the_sizes():
  model = dataclasses.replace(SMALL, sliding_window=6)
  assert_same(
    _generate(dataclasses.replace(LONG, cache_buckets=5), model=model), _generate(LONG, model=model)
  )


def test_growing_caches_under_a_watched_loop_whose_segments_end_elsewhere():
  seen = []
  found = _generate(
    dataclasses.replace(LONG, cache_buckets=3),
    progress=lambda progress: seen.append(progress.step),
    segment=7,
  )
  assert_same(found, _generate(LONG))
  assert seen == sorted(set(seen))


def test_caches_are_as_small_as_the_tokens_allow(monkeypatch):
  calls = []
  with_room = cache_growth.with_room

  def watch(state, step, sizes):
    state, room = with_room(state, step, sizes)
    calls.append((step, state.cache[0].key.shape[3], state.cache[0].value.shape[2], room))
    return state, room

  monkeypatch.setattr("tea_jax.rollout.decode_batch.with_room", watch)
  _generate(dataclasses.replace(LONG, cache_buckets=3))
  # The token drawn last is written by the next step, so one more than the places may stand there.
  assert calls == [(1, 16, 16, 17), (17, 32, 32, 33), (33, 48, 48, 49)]


def test_sizes_are_compiled_once(monkeypatch):
  policy = tiny.tiny_policy(dataclasses.replace(SMALL, vocab_size=96))
  engine = RolloutEngine(policy, dataclasses.replace(LONG, cache_buckets=3))
  _, advance = engine._compiled(15)
  before = advance._cache_size()
  for seed in range(3):
    engine.generate(policy.params, PROMPTS, key=jax.random.key(seed), num_rollouts=5)
  assert advance._cache_size() - before == 3


def test_counts_that_make_no_sense_are_refused():
  for count in (0, 9):
    with pytest.raises(ValueError, match="cache_buckets"):
      SamplingConfig(cache_buckets=count)
