"""The lower bound of a step's seconds against sums by hand."""

import pytest

from tea_jax.runs.plan import describe, estimate_memory
from tests.training import tiny

# Two layers: query and output 16 x 16, key and value 16 x 8, three of 16 x 32.
KERNELS = 2 * (2 * 256 + 2 * 128 + 3 * 512)
HEAD = 24 * 16
ROWS, PROMPT, TOKENS, PLACES = 16, 16, 6, 8


def _seconds(tmp_path, **changes):
  config = tiny.config(tmp_path, **changes)
  return estimate_memory(config, tiny.MODEL, prompt_length=5).seconds


def test_without_a_peak_there_is_no_bound(tmp_path):
  assert _seconds(tmp_path) is None
  assert "time of a step" not in describe(estimate_memory(tiny.config(tmp_path), tiny.MODEL))


def test_arithmetic_over_the_peak(tmp_path):
  seconds = _seconds(tmp_path, logging={"peak_teraflops": 1e-6})  # a million a second
  per_key = 4 * 2 * 16
  prefill = 2 * KERNELS * 32 + per_key * 32 * PROMPT + 2 * HEAD * 2
  token = ROWS * (2 * KERNELS + per_key * (PROMPT + PLACES) + 2 * HEAD)
  assert seconds.rollout == pytest.approx((prefill + (TOKENS - 1) * token) / 1e6)
  completions = ROWS * (TOKENS - 1)
  products = 2 * KERNELS * (32 + completions)
  attention = per_key * (32 * PROMPT + completions * (PROMPT + TOKENS - 1))
  head = 2 * HEAD * ROWS * TOKENS
  # Forward, twice that backward, and what is computed again.
  assert seconds.update == pytest.approx(4 * (products + attention + head) / 1e6)
  assert seconds.reference == 0
  with_kl = _seconds(tmp_path, logging={"peak_teraflops": 1e-6}, objective={"kl_coefficient": 0.1})
  assert with_kl.reference == pytest.approx((products + attention + head) / 1e6)


def test_bytes_over_the_bandwidth(tmp_path):
  seconds = _seconds(tmp_path, logging={"peak_bandwidth": 1e-3})  # a million a second
  norms = 4 * 5 * 16
  weights = 4 * KERNELS + norms
  caches = 4 * 2 * 2 * 8 * (2 * PROMPT + ROWS * PLACES)
  assert seconds.rollout == pytest.approx((TOKENS * weights + (TOKENS - 1) * caches) / 1e6)
  state = 3 * (weights + 4 * HEAD)
  assert seconds.update == pytest.approx(2 * state / 1e6)
  assert seconds.tokens == ROWS * TOKENS


def test_the_slower_of_the_two_counts_and_devices_share_it(tmp_path):
  peaks = {"peak_teraflops": 1e-6, "peak_bandwidth": 1e-3}
  both = _seconds(tmp_path, logging=peaks)
  alone = [_seconds(tmp_path, logging={name: value}) for name, value in peaks.items()]
  assert both.update == max(each.update for each in alone)
  config = tiny.config(tmp_path, logging={"peak_teraflops": 1e-6}, mesh={"data": 2})
  shared = estimate_memory(config, tiny.MODEL, prompt_length=5, num_devices=2).seconds
  assert shared is not None
  assert shared.update == pytest.approx(alone[0].update / 2)


def test_growing_caches_are_read_as_far_as_they_go(tmp_path):
  def rollout(cache_buckets):
    config = tiny.config(
      tmp_path,
      sampling={"max_completion_length": 32, "cache_buckets": cache_buckets},
      logging={"peak_bandwidth": 1e-3},
    )
    return estimate_memory(config, tiny.MODEL, prompt_length=5).seconds.rollout

  # 8, 16, 24 and 32 places, of which the last is read seven times, since no token follows it.
  fewer = 8 * (24 + 16 + 8)
  row = 4 * 2 * 2 * 8
  assert rollout(1) - rollout(4) == pytest.approx(ROWS * row * fewer / 1e6)
