"""JAX's splash kernel, interpreted: the blocks' values, log-sum-exp and gradients; it lowers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tea_jax.models import fused_attention, splash_segment
from tea_jax.models.splash_segment import splash_segment_takes
from tests.models.test_fused_attention import (
  assert_same,
  fused,
  inputs,
  plain,
  value_and_gradient,
)

SEGMENT = functools.partial(splash_segment.splash_segment, interpret=True)


@pytest.fixture
def interpreted(monkeypatch):
  monkeypatch.setitem(fused_attention._KERNELS, "splash", SEGMENT)


def segment_of_blocks(query, key, value, lengths, *, causal):
  """Values and log-sum-exp of one segment by our own blocks of keys."""
  steps = jnp.arange(query.shape[1])[None]
  segment = fused_attention._Segment(key, value, steps, lengths, causal)
  if not causal:
    segment = segment._replace(positions=lengths[:, None] + steps)
  return fused_attention._by_blocks(query, segment, None)


def assert_segments_agree(
  *, causal, rows=2, time=5, places=7, heads=4, kv_heads=2, width=8, seed=0
):
  rng = np.random.default_rng(seed)
  places = time if causal else places
  query = jnp.asarray(rng.normal(size=(rows, time, heads, width)), jnp.float32)
  key, value = (
    jnp.asarray(rng.normal(size=(rows, places, kv_heads, width)), jnp.float32) for _ in range(2)
  )
  lengths = jnp.asarray(rng.integers(0, places + 1, rows)).at[0].set(0)  # a prompt of no tokens
  if causal:
    lengths = jnp.full(rows, places)
  expected = segment_of_blocks(query, key, value, lengths, causal=causal)
  found = SEGMENT(query, key, value, None if causal else lengths, causal=causal)
  for a, b in zip(found, expected, strict=True):
    assert a.dtype == jnp.float32
    np.testing.assert_allclose(a, b, atol=5e-6)


@pytest.mark.parametrize("causal", [True, False])
def test_values_and_log_sum_exp_are_the_blocks(causal):
  assert_segments_agree(causal=causal, time=130, places=140)  # more than one block of each


@pytest.mark.slow
@settings(max_examples=5)
@given(
  causal=st.booleans(),
  rows=st.integers(1, 2),
  time=st.integers(1, 140),
  places=st.integers(1, 260),
  kv_heads=st.integers(1, 2),
  shared=st.integers(1, 3),
  width=st.sampled_from([4, 64]),
  seed=st.integers(0, 99),
)
def test_any_shape_gives_the_blocks_answer(kv_heads, shared, **shape):
  assert_segments_agree(kv_heads=kv_heads, heads=kv_heads * shared, **shape)


@pytest.mark.slow
@pytest.mark.usefixtures("interpreted")
def test_whole_attention_has_the_plain_values_and_gradients():
  arrays, lengths = inputs(time=12, prompt_time=20, width=16)
  exact = value_and_gradient(plain, arrays, lengths)
  attention = functools.partial(fused, forward="splash")
  assert_same(value_and_gradient(attention, arrays, lengths), exact, 1e-5)
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), arrays)
  assert_same(value_and_gradient(attention, half, lengths), exact, 0.03)
  none = value_and_gradient(attention, arrays, lengths.at[0].set(0))
  assert_same(none, value_and_gradient(fused, arrays, lengths.at[0].set(0)), 1e-5)


@pytest.mark.parametrize(
  "heads, kv_heads, width, dtype",
  [
    pytest.param(9, 3, 64, jnp.bfloat16, id="smollm2-135m"),
    pytest.param(32, 8, 128, jnp.bfloat16, id="llama-3-8b"),
    pytest.param(8, 1, 256, jnp.float32, id="gemma-2b"),
  ],
)
def test_the_whole_attention_and_its_gradient_lower_for_tpu(heads, kv_heads, width, dtype):
  def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, dtype)

  rows, time, prompt_time = 16, 500, 700  # not whole blocks
  arrays = (
    shape(rows, time, heads, width),
    (shape(rows, time, kv_heads, width),) * 2,
    (shape(2, prompt_time, kv_heads, width),) * 2,
  )

  def loss(arrays, lengths):
    return jnp.sum(fused(arrays, lengths, forward="splash").astype(jnp.float32))

  traced = jax.jit(jax.grad(loss)).trace(arrays, jax.ShapeDtypeStruct((2,), jnp.int32))
  text = traced.lower(lowering_platforms=("tpu",)).as_text()
  assert text.count("tpu_custom_call") == 2  # own keys and the prompt's


def test_only_one_tpu_takes_it(monkeypatch):
  assert not splash_segment_takes(64)
  monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
  monkeypatch.setattr(jax, "device_count", lambda: 1)
  assert [width for width in (16, 64, 80, 128, 256, 512) if splash_segment_takes(width)] == [
    64,
    128,
    256,
  ]
  assert fused_attention._best_forward(jnp.bfloat16, 64, None) == "splash"
  assert fused_attention._best_forward(jnp.bfloat16, 64, 128) == "xla"
  monkeypatch.setattr(jax, "device_count", lambda: 4)
  assert not splash_segment_takes(64)
