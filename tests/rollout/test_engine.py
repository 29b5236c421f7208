import dataclasses
import functools
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from tea_jax.models.logprobs import group_logprobs
from tea_jax.rollout.cache import bucket
from tea_jax.rollout.engine import RolloutEngine
from tea_jax.rollout.progress import progress_bar
from tea_jax.rollout.sampling import SamplingConfig
from tests.models import tiny

PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8, 9, 10]]
KEY = jax.random.key(3)
SMALL = dataclasses.replace(tiny.LLAMA, num_layers=1)


def tiny_policy(**options):
  return tiny.tiny_policy(SMALL, **options)


class LetterTokenizer:
  """Token i is a letter: enough for stop strings."""

  def decode(self, tokens, skip_special_tokens=False):
    return "".join(chr(ord("a") + token % 4) for token in tokens)


def generate(policy, sampling, prompts=PROMPTS, rollouts=4, engine_options=None, **options):
  engine = RolloutEngine(policy, sampling, **(engine_options or {}))
  return engine.generate(policy.params, prompts, key=KEY, num_rollouts=rollouts, **options)


@pytest.mark.parametrize("name", tiny.COSTLY)
def test_sampler_and_trainer_agree_on_logprobs(name):
  policy = tiny.tiny_policy(tiny.CONFIGS[name])
  sampling = SamplingConfig(temperature=0.8, max_completion_length=8, stop_tokens=(5, 6, 7))
  rollouts = generate(policy, sampling)
  scored = functools.partial(group_logprobs, policy, temperature=0.8)
  trained = jax.jit(scored)(policy.params, rollouts).logprobs
  np.testing.assert_allclose(rollouts.logprobs, trained, atol=1e-4)
  np.testing.assert_array_equal(rollouts.logprobs, rollouts.sampling_logprobs)
  padding = np.arange(8) >= rollouts.completion_lengths[..., None]
  assert (rollouts.logprobs[~padding] < 0).all()
  assert (rollouts.completion_tokens[padding] == 0).all()


@pytest.mark.slow
def test_greedy_decoding_equals_repeated_forward_passes():
  policy = tiny_policy()
  sampling = SamplingConfig(temperature=0, max_completion_length=8)
  rollouts = generate(policy, sampling, rollouts=1)
  for prompt, completion in zip(PROMPTS, rollouts.completion_tokens[:, 0], strict=True):
    tokens = list(prompt)
    for _ in range(8):
      hidden = policy.hidden_states(policy.params, jnp.asarray([tokens]))
      tokens.append(int(jnp.argmax(policy.logits(policy.params, hidden)[0, -1])))
    assert tokens[len(prompt) :] == completion.tolist()


def test_a_row_is_the_same_alone_and_in_a_batch_of_64():
  # Other compiled shapes may change the last bits of a logit; with these keys no draw lies that
  # near to a boundary (a chance of about 1e-6 a token).
  policy = tiny_policy()
  sampling = SamplingConfig(max_completion_length=8, stop_tokens=(5,))
  prompts = [[i, i + 1, i + 2][: 1 + i % 3] for i in range(16)]
  batch = generate(policy, sampling, prompts, rollouts=4)
  assert batch.completion_tokens.reshape(-1, 8).shape == (64, 8)
  alone = RolloutEngine(policy, sampling)
  for index in (0, 7, 15):
    single = alone.generate(
      policy.params, [prompts[index]], key=KEY, num_rollouts=1, prompt_ids=[index]
    )
    np.testing.assert_array_equal(single.completion_tokens[0, 0], batch.completion_tokens[index, 0])
    np.testing.assert_allclose(single.logprobs[0, 0], batch.logprobs[index, 0], atol=1e-5)


def test_batch_mates_do_not_change_a_single_bit_in_one_compiled_shape():
  policy = tiny_policy()
  engine = RolloutEngine(policy, SamplingConfig(max_completion_length=8, stop_tokens=(5,)))
  options = {"key": KEY, "num_rollouts": 4}
  first = engine.generate(policy.params, [[1, 2], [3], [4]], prompt_ids=[0, 1, 2], **options)
  second = engine.generate(policy.params, [[9, 8], [7, 7], [1, 2]], prompt_ids=[5, 6, 0], **options)
  for name in ("completion_tokens", "logprobs", "completion_lengths", "finished"):
    np.testing.assert_array_equal(getattr(first, name)[0], getattr(second, name)[2])
  assert (first.completion_tokens[1] != second.completion_tokens[1]).any()


def test_rows_prompts_and_keys_draw_differently():
  policy = tiny_policy()
  engine = RolloutEngine(policy, SamplingConfig(max_completion_length=8))
  prompts = [[1, 2]] * 3
  first = engine.generate(policy.params, prompts, key=KEY, num_rollouts=4)
  other = engine.generate(policy.params, prompts, key=jax.random.key(4), num_rollouts=4)
  rows = np.concatenate([r.completion_tokens.reshape(-1, 8) for r in (first, other)])
  assert len({tuple(row) for row in rows.tolist()}) == 24


def test_early_stop_loses_nothing():
  policy = tiny_policy()
  base = SamplingConfig(max_completion_length=8, stop_tokens=())
  free = generate(policy, base)
  stops = tuple(range(0, 97, 3))
  stopped = generate(policy, dataclasses.replace(base, stop_tokens=stops))
  assert not free.finished.any()
  assert (free.completion_lengths == 8).all()
  hits = np.isin(free.completion_tokens, stops)
  lengths = np.where(hits.any(-1), hits.argmax(-1) + 1, 8)
  np.testing.assert_array_equal(stopped.completion_lengths, lengths)
  np.testing.assert_array_equal(stopped.finished, hits.any(-1))
  kept = np.arange(8) < lengths[..., None]
  np.testing.assert_array_equal(
    stopped.completion_tokens, np.where(kept, free.completion_tokens, 0)
  )
  np.testing.assert_array_equal(stopped.logprobs, np.where(kept, free.logprobs, 0))


def test_splitting_segments_and_callbacks_change_nothing():
  policy = tiny_policy()
  sampling = SamplingConfig(max_completion_length=8, stop_tokens=(5,))
  expected = generate(policy, sampling, rollouts=5)
  seen = []
  split = generate(
    policy,
    sampling,
    rollouts=5,
    engine_options={"max_rows": 2, "segment": 3},
    progress=seen.append,
  )
  np.testing.assert_array_equal(split.completion_tokens, expected.completion_tokens)
  np.testing.assert_array_equal(split.finished, expected.finished)
  np.testing.assert_allclose(split.logprobs, expected.logprobs, atol=1e-5)
  assert seen[-1].rows_done == seen[-1].rows_total == 10
  assert max(report.completion_tokens.shape[1] for report in seen) == 2
  assert {len(report.rollouts) for report in seen} == {1, 2}


def test_progress_bar_reaches_every_rollout():
  sampling = SamplingConfig(max_completion_length=8, stop_tokens=(5,))
  console = Console(file=io.StringIO(), force_terminal=True, width=120)
  options = {"max_rows": 2, "segment": 3}
  with progress_bar(console) as bar:
    generate(tiny_policy(), sampling, rollouts=5, engine_options=options, progress=bar)
  drawn = console.file.getvalue()
  assert "rollouts 10 of 10" in drawn
  assert "100%" in drawn


def test_memory_bound_splits_or_says_that_nothing_fits():
  policy = tiny_policy()
  sampling = SamplingConfig(max_completion_length=8)
  small = RolloutEngine(policy, sampling, memory=40_000)
  parts = small._batches(np.asarray([3, 7]), 64)
  assert len(parts) > 2
  assert sum(len(range(64)[rollouts]) for _, rollouts in parts) == 128
  with pytest.raises(ValueError, match="one rollout needs about"):
    generate(policy, sampling, engine_options={"memory": 1000})


def test_stop_strings_cut_after_the_token_that_completes_them():
  policy = tiny_policy(tokenizer=LetterTokenizer())
  base = SamplingConfig(max_completion_length=8, stop_tokens=())
  free = generate(policy, base)
  stopped = [
    generate(
      policy,
      dataclasses.replace(base, stop_strings=("ab", "dd")),
      engine_options={"segment": segment},
    )
    for segment in (1, 5)
  ]
  ended = 0
  for place in np.ndindex(2, 4):
    text = LetterTokenizer().decode(free.completion_tokens[place].tolist())
    ends = [text.index(s) + 2 for s in ("ab", "dd") if s in text]
    length = min(ends, default=8)
    ended += bool(ends)
    for result in stopped:
      assert result.completion_lengths[place] == length
      assert result.finished[place] == bool(ends)
      expected = np.where(np.arange(8) < length, free.completion_tokens[place], 0)
      np.testing.assert_array_equal(result.completion_tokens[place], expected)
  assert 0 < ended < 8


def test_repetition_penalty_sees_prompt_and_completion():
  policy = tiny_policy()
  sampling = SamplingConfig(
    temperature=0, repetition_penalty=1e6, max_completion_length=8, stop_tokens=()
  )
  rollouts = generate(policy, sampling, rollouts=1)
  for prompt, completion in zip(PROMPTS, rollouts.completion_tokens[:, 0], strict=True):
    row = prompt + completion.tolist()
    # A positive logit comes next to 0 once seen, and 97 tokens leave enough others above.
    assert len(set(row)) == len(row)


@pytest.mark.slow
def test_ragged_batches_compile_each_bucket_once():
  policy = tiny_policy()
  # A temperature of its own: equal programs share their compilations with other tests.
  sampling = SamplingConfig(temperature=0.9, max_completion_length=8, stop_tokens=(5, 6, 7))
  engine = RolloutEngine(policy, sampling)
  rng = np.random.default_rng(0)
  buckets = set()
  for _ in range(20):
    prompts = [rng.integers(0, 97, rng.integers(1, 33)).tolist() for _ in range(rng.integers(1, 3))]
    engine.generate(policy.params, prompts, key=KEY, num_rollouts=2)
    width = max(len(prompt) for prompt in prompts)
    buckets.add((bucket(len(prompts)), bucket(width, smallest=16)))
  assert len(buckets) > 3
  start, advance = engine._compiled(2)
  assert start._cache_size() == len(buckets)
  assert advance._cache_size() == len(buckets)


@pytest.mark.parametrize(
  "prompts, message",
  [
    ([], "prompts is empty"),
    ([[1], []], "prompt 1 is empty"),
    ([[1] * 57], "prompt 0 has 57 tokens.*context of 64"),
    ([[1, 97]], "prompt 0 holds a token outside"),
    ([[-1]], "prompt 0 holds a token outside"),
  ],
)
def test_bad_prompts_are_named(prompts, message):
  with pytest.raises(ValueError, match=message):
    generate(tiny_policy(), SamplingConfig(max_completion_length=8), prompts)


def test_bad_engines_are_refused():
  policy = tiny_policy()
  with pytest.raises(ValueError, match="stop token 97 is unknown"):
    RolloutEngine(policy, SamplingConfig(stop_tokens=(97,)))
  with pytest.raises(ValueError, match="need a tokenizer"):
    RolloutEngine(policy, SamplingConfig(stop_strings=("x",)))
  with pytest.raises(ValueError, match="2 prompt_ids for 1 prompts"):
    generate(policy, SamplingConfig(max_completion_length=8), [[1]], prompt_ids=[0, 1])
  with pytest.raises(ValueError, match="num_rollouts=0"):
    generate(policy, SamplingConfig(max_completion_length=8), rollouts=0)


def test_buckets_hold_their_size_and_waste_at_most_half():
  for size in range(1, 500):
    assert size <= bucket(size) <= 1.5 * size
    assert bucket(bucket(size)) == bucket(size)
