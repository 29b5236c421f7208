"""The decode kernel over own keys and products over the prompt: the answer of one softmax."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tea_jax.models.attention import as_cache
from tea_jax.models.decode_attention import (
  XLA,
  KernelCache,
  PallasDecode,
  decode_attention,
  kernel_blocks,
)
from tea_jax.models.visibility import visible_keys
from tests.models.tiny import LLAMA

INTERPRETED = PallasDecode(interpret=True)


def attended(
  attention,
  *,
  step=11,
  window=None,
  lengths=(7, 4),
  rollouts=3,
  heads=4,
  kv_heads=2,
  width=16,
  places=32,
  dtype=jnp.float32,
  scale=1.0,
  seed=0,
):
  """What a decoding step attends to: the same random numbers for both ways, written one by one."""
  rng = np.random.default_rng(seed)
  rows, prompt_time = len(lengths) * rollouts, max(lengths)

  def normal(*shape):
    return jnp.asarray(scale * rng.normal(size=shape), dtype)

  query = normal(rows, heads, width)
  prompt = as_cache(*(normal(len(lengths), prompt_time, kv_heads, width) for _ in range(2)))
  tokens = normal(2, step + 1, rows, kv_heads, width)
  lengths = jnp.asarray(lengths)
  keys = jnp.arange(prompt_time)
  visible = visible_keys(lengths[:, None] + step, keys[None], window)[:, 0]
  visible &= keys < lengths[:, None]

  def run(query, prompt, tokens):
    own = attention.empty((rows, kv_heads, places, width), dtype)
    # What stands ahead must not be seen.
    own = jax.tree.map(lambda x: x + 100, own)
    own = jax.lax.fori_loop(0, step + 1, lambda i, own: own.write(*tokens[:, i], i), own)
    return attention.attend(query, (prompt, visible), own, jnp.int32(step), window)

  result = jax.jit(run)(query, prompt, tokens)
  assert result.shape == query.shape
  assert result.dtype == dtype
  return np.asarray(result, np.float32)


@pytest.mark.parametrize("window", [None, 1, 5, 14])
def test_the_kernels_part_and_the_prompts_meet_in_one_softmax(window):
  """Windows within the own keys, of one token, and over a part of the prompt."""
  np.testing.assert_allclose(
    attended(INTERPRETED, window=window), attended(XLA, window=window), atol=2e-6
  )


@pytest.mark.parametrize("step", [0, 15, 31])
def test_first_token_and_full_blocks(step):
  np.testing.assert_allclose(attended(INTERPRETED, step=step), attended(XLA, step=step), atol=2e-6)


@pytest.mark.slow
@settings(max_examples=8)
@given(
  kv_heads=st.integers(1, 3),
  shared=st.sampled_from([1, 2, 3, 20]),
  lengths=st.lists(st.integers(1, 9), min_size=1, max_size=3),
  rollouts=st.integers(1, 3),
  width=st.sampled_from([8, 16, 64]),
  step=st.integers(0, 15),
  places=st.sampled_from([16, 32, 48, 128]),
  window=st.none() | st.integers(1, 20),
  seed=st.integers(0, 99),
)
def test_any_shape_gives_the_plain_answer(kv_heads, shared, **shape):
  shape |= {"kv_heads": kv_heads, "heads": kv_heads * shared}
  np.testing.assert_allclose(attended(INTERPRETED, **shape), attended(XLA, **shape), atol=5e-6)


def test_bfloat16_rounds_as_much_as_the_plain_form():
  exact = attended(XLA)
  for attention in (XLA, INTERPRETED):
    np.testing.assert_allclose(attended(attention, dtype=jnp.bfloat16), exact, atol=0.03)


def test_large_scores_of_one_part_are_no_trouble():
  np.testing.assert_allclose(
    attended(INTERPRETED, scale=20.0), attended(XLA, scale=20.0), atol=2e-4, rtol=1e-4
  )


def test_a_cache_with_more_places_keeps_what_was_written():
  rng = np.random.default_rng(0)
  own = KernelCache(*(jnp.asarray(rng.normal(size=(2, 1, 16, 8))) for _ in range(2)))
  for before, after in zip(own, own.widen(16), strict=True):
    assert after.shape == (2, 1, 32, 8)
    np.testing.assert_array_equal(after[:, :, :16], before)
    assert not after[:, :, 16:].any()


@given(st.integers(1, 64), st.integers(1, 4096))
def test_blocks_are_what_the_kernel_takes(sixteens, programs):
  places = 16 * sixteens
  block, splits = kernel_blocks(places, programs)
  assert 16 <= block <= 64
  assert block & (block - 1) == 0
  assert places % (splits * block) == 0


@pytest.mark.parametrize(
  "rows, heads, kv_heads, width, dtype",
  [
    pytest.param(64, 9, 3, 64, jnp.bfloat16, id="smollm2-135m"),
    pytest.param(1024, 32, 8, 64, jnp.bfloat16, id="llama-3.2-1b"),
    pytest.param(16, 32, 8, 128, jnp.bfloat16, id="llama-3-8b"),
    pytest.param(16, 9, 3, 64, jnp.float32, id="float32"),
  ],
)
@pytest.mark.parametrize("window", [None, 32])
def test_the_kernel_lowers_for_cuda(rows, heads, kv_heads, width, dtype, window):
  def shape(*sizes, dtype=dtype):
    return jax.ShapeDtypeStruct(sizes, dtype)

  attention = PallasDecode()
  own = jax.eval_shape(lambda: attention.empty((rows, kv_heads, 256, width), dtype))
  prompt = jax.eval_shape(as_cache, *(shape(2, 128, kv_heads, width),) * 2)
  arguments = (
    shape(rows, heads, width),
    (prompt, shape(2, 128, dtype=bool)),
    own,
    shape(dtype=jnp.int32),
  )
  traced = jax.jit(lambda *a: attention.attend(*a, window)).trace(*arguments)
  text = traced.lower(lowering_platforms=("cuda",)).as_text()
  assert text.count("__gpu$xla.gpu.triton") == 1


def test_where_the_kernel_cannot_run_is_said():
  with pytest.raises(ValueError, match='NVIDIA GPU, not cpu; use "xla"'):
    decode_attention("pallas", dataclasses.replace(LLAMA, head_dim=64))
  with pytest.raises(ValueError, match="power of two from 16 on, not 80"):
    decode_attention("pallas", dataclasses.replace(LLAMA, head_dim=80))
  with pytest.raises(ValueError, match="'cuda' is unknown"):
    decode_attention("cuda", LLAMA)
