"""Rollouts by the decode kernel, interpreted: the tokens and log-probabilities of the default."""

import dataclasses

import jax
import numpy as np
import pytest

from tea_jax.rollout.engine import RolloutEngine
from tea_jax.rollout.sampling import SamplingConfig
from tests.models import tiny
from tests.rollout.test_cache_growth import PROMPTS, assert_same

MODEL = dataclasses.replace(tiny.LLAMA, num_layers=1)
# Rows end early and late.
SAMPLING = SamplingConfig(max_completion_length=40, stop_tokens=tuple(range(0, 97, 12)))


def generate(sampling, *, model=MODEL, **options):
  policy = tiny.tiny_policy(model)
  engine = RolloutEngine(policy, sampling, segment=9, interpret=True)
  return engine.generate(policy.params, PROMPTS, key=jax.random.key(3), num_rollouts=5, **options)


@pytest.mark.parametrize(
  "sampling",
  [
    pytest.param(SAMPLING, id="whole caches"),
    pytest.param(dataclasses.replace(SAMPLING, cache_buckets=3, compactions=2), id="moving"),
  ],
)
@pytest.mark.slow
def test_the_kernel_draws_the_same_tokens(sampling):
  by_kernel = dataclasses.replace(sampling, decode_attention="pallas")
  found, expected = generate(by_kernel), generate(SAMPLING)
  assert_same(found, expected)
  assert len(np.unique(expected.completion_lengths)) > 3


@pytest.mark.slow
def test_a_window_under_a_watched_loop():
  model = dataclasses.replace(MODEL, sliding_window=6)
  steps = []
  found = generate(
    dataclasses.replace(SAMPLING, decode_attention="pallas", cache_buckets=2),
    model=model,
    progress=lambda progress: steps.append(progress.step),
  )
  assert_same(found, generate(SAMPLING, model=model))
  assert len(steps) > 3


@pytest.mark.slow
def test_sizes_are_whole_blocks_and_compiled_once():
  policy = tiny.tiny_policy(dataclasses.replace(MODEL, vocab_size=96))
  sampling = dataclasses.replace(
    SAMPLING, stop_tokens=(), decode_attention="pallas", cache_buckets=3
  )
  engine = RolloutEngine(policy, sampling, interpret=True)
  _, advance = engine._compiled(15)
  before = advance._cache_size()
  for seed in range(2):
    engine.generate(policy.params, PROMPTS, key=jax.random.key(seed), num_rollouts=5)
  assert advance._cache_size() - before == 3


def test_without_a_gpu_the_engine_is_refused_before_anything_runs():
  with pytest.raises(ValueError, match="needs an NVIDIA GPU"):
    RolloutEngine(
      tiny.tiny_policy(dataclasses.replace(MODEL, head_dim=16)),
      SamplingConfig(decode_attention="pallas"),
    )
