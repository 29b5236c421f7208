"""Attention by segments and blocks: the plain one's values and gradients, in less memory."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from tea_jax.models import cudnn_segment, fused_attention
from tea_jax.models.attention import causal_attention, segment_attention
from tea_jax.models.fused_attention import fused_segment_attention
from tea_jax.models.logprobs import group_logprobs, token_logprobs
from tea_jax.models.visibility import visible_keys
from tests.models.test_logprobs import make_rollouts
from tests.models.tiny import CONFIGS, tiny_policy


def inputs(*, prompts=2, rollouts=3, time=5, prompt_time=7, heads=4, kv_heads=2, width=8, seed=0):
  """(query, own, prompt) and random prompt lengths, of which the last is short."""
  rng = np.random.default_rng(seed)

  def normal(*shape):
    return jnp.asarray(2 * rng.normal(size=shape), jnp.float32)

  query = normal(prompts * rollouts, time, heads, width)
  own = tuple(normal(prompts * rollouts, time, kv_heads, width) for _ in range(2))
  prompt = tuple(normal(prompts, prompt_time, kv_heads, width) for _ in range(2))
  lengths = jnp.asarray(rng.integers(1, prompt_time + 1, prompts), jnp.int32).at[-1].set(1)
  return (query, own, prompt), lengths


def plain(arrays, lengths, window=None):
  """`segment_attention` with the masks of `shared_prompt`."""
  query, own, prompt = arrays
  steps, places = jnp.arange(query.shape[1]), jnp.arange(prompt[0].shape[1])
  seen = visible_keys(
    lengths[:, None] + steps, jnp.broadcast_to(places, prompt[0].shape[:2]), window
  )
  seen &= (places < lengths[:, None])[:, None]
  seen = jnp.repeat(seen, query.shape[0] // len(lengths), axis=0)
  return segment_attention(
    query, [(*prompt, seen), (*own, visible_keys(steps, steps, window)[None])]
  )


def fused(arrays, lengths, window=None, forward="xla"):
  query, own, prompt = arrays
  return fused_segment_attention(
    query, own, prompt, lengths, sliding_window=window, forward=forward
  )


def value_and_gradient(attention, arrays, lengths, window=None):
  """Values and the gradient of a random sum of them, in float32."""
  outer = np.random.default_rng(1).normal(size=arrays[0].shape).astype(np.float32)

  def loss(arrays):
    attended = attention(arrays, lengths, window)
    return jnp.sum(outer * attended), attended

  gradient, attended = jax.jit(jax.grad(loss, has_aux=True))(arrays)
  return jax.tree.map(lambda x: np.asarray(x, np.float32), (attended, gradient))


def assert_same(first, second, tolerance):
  """Equal to a share of the largest number of each array."""

  def same(a, b):
    assert np.isfinite(a).all()
    np.testing.assert_allclose(a, b, atol=tolerance * max(1.0, float(np.abs(b).max())))

  jax.tree.map(same, first, second)


@pytest.mark.parametrize("window", [None, 1, 4])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_values_and_gradients_are_those_of_the_plain_form(kv_heads, window, monkeypatch):
  monkeypatch.setattr(fused_attention, "KEY_BLOCK", 3)  # blocks of both segments, the last cut
  arrays, lengths = inputs(kv_heads=kv_heads)
  expected = value_and_gradient(plain, arrays, lengths, window)
  assert_same(value_and_gradient(fused, arrays, lengths, window), expected, 1e-5)


@pytest.mark.slow
@settings(max_examples=6)
@given(
  shape=st.fixed_dictionaries(
    {name: st.integers(1, 3) for name in ("prompts", "rollouts", "kv_heads")}
    | {"time": st.integers(1, 6), "prompt_time": st.integers(1, 9), "seed": st.integers(0, 99)}
  ),
  shared=st.integers(1, 2),
  window=st.none() | st.integers(1, 8),
)
def test_any_shape_gives_the_plain_forms_answer(shape, shared, window):
  arrays, lengths = inputs(**shape, heads=shared * shape["kv_heads"], width=4)
  expected = value_and_gradient(plain, arrays, lengths, window)
  assert_same(value_and_gradient(fused, arrays, lengths, window), expected, 1e-5)


def test_bfloat16_rounds_as_much_as_the_plain_form():
  arrays, lengths = inputs(time=12, prompt_time=20, width=16)
  exact = value_and_gradient(plain, arrays, lengths)
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), arrays)
  assert fused(half, lengths).dtype == jnp.bfloat16
  assert_same(value_and_gradient(fused, half, lengths), exact, 0.03)
  assert_same(value_and_gradient(plain, half, lengths), exact, 0.03)


def test_gradient_is_that_of_finite_differences():
  arrays, lengths = inputs(prompts=1, rollouts=2, time=3, prompt_time=4, heads=2, width=4)
  # Forward differences of products in float32: loose, but a dropped term is of order 1.
  function = jax.jit(lambda *arrays: fused(arrays, lengths))
  check_grads(function, arrays, order=1, modes=("rev",), atol=0.02, rtol=0.02)


@pytest.mark.parametrize("window", [None, 2])
def test_a_segment_without_visible_keys_has_no_part(window):
  arrays, _ = inputs()
  lengths = jnp.asarray([0, 3])  # no prompt; with a window, also no prompt from some query on
  query, own, _ = arrays
  attended, (to_query, to_own, to_prompt) = value_and_gradient(fused, arrays, lengths, window)
  alone = causal_attention(query, *own, sliding_window=window, kind="xla")
  np.testing.assert_allclose(attended[:3], alone[:3], atol=2e-6)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves((to_query, to_own, to_prompt)))
  assert not any(x[0].any() for x in to_prompt)
  assert all(np.abs(x[1, :3]).sum() > 0 and not x[1, 3:].any() for x in to_prompt)


def test_padding_of_the_prompt_has_no_influence():
  (query, own, prompt), lengths = inputs()
  padding = (jnp.arange(7) >= lengths[:, None])[..., None, None]
  other = tuple(jnp.where(padding, 1e4, x) for x in prompt)
  first, second = (value_and_gradient(fused, (query, own, p), lengths) for p in (prompt, other))
  jax.tree.map(np.testing.assert_array_equal, first, second)


def test_large_scores_are_no_trouble():
  arrays, lengths = inputs()
  hundreds, thousands = (jax.tree.map(lambda x, f=f: f * x, arrays) for f in (4, 30))
  expected = value_and_gradient(plain, hundreds, lengths)
  assert_same(value_and_gradient(fused, hundreds, lengths), expected, 2e-4)
  # A log-sum-exp of 10,000 is rounded by 5e-4 in float32, and the weights with it.
  gradient = value_and_gradient(fused, thousands, lengths)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))


def test_merging_the_librarys_segments_has_right_values_and_wrong_gradients():
  """Why the gradient is our own: the library stops that of the log-sum-exp, and says nothing."""
  arrays, _ = inputs()
  lengths = jnp.asarray([7, 7])

  def merged(arrays, lengths, window=None):
    query, own, prompt = arrays
    attend = functools.partial(jax.nn.dot_product_attention, return_residual=True)
    first, first_total = attend(query.reshape(2, 15, 4, 8), *prompt)
    second, second_total = attend(query, *own, is_causal=True)
    share = jax.nn.sigmoid(first_total.reshape(6, 5, 4) - second_total)[..., None]
    return share * first.reshape(query.shape) + (1 - share) * second

  expected = value_and_gradient(plain, arrays, lengths)
  naive, ours = (value_and_gradient(f, arrays, lengths) for f in (merged, fused))
  np.testing.assert_allclose(naive[0], expected[0], atol=2e-6)
  wrong, right = naive[1][0], expected[1][0]  # of the query
  assert np.abs(wrong - right).max() > 0.1 * np.abs(right).max()
  assert_same(ours, expected, 1e-5)


@pytest.fixture
def library_in_place_of_cudnn(monkeypatch):
  """The calls that cuDNN would get go to the library's XLA implementation, which a CPU has."""
  segment = functools.partial(cudnn_segment.cudnn_segment, implementation="xla")
  monkeypatch.setitem(fused_attention._KERNELS, "cudnn", segment)


@pytest.mark.usefixtures("library_in_place_of_cudnn")
def test_cudnns_calls_give_the_same_values_and_gradients():
  arrays, lengths = inputs(time=12, prompt_time=20, width=16)
  exact = value_and_gradient(plain, arrays, lengths)
  attention = functools.partial(fused, forward="cudnn")
  assert_same(value_and_gradient(attention, arrays, lengths), exact, 2e-5)
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), arrays)
  assert_same(value_and_gradient(attention, half, lengths), exact, 0.03)
  none = value_and_gradient(attention, arrays, lengths.at[0].set(0))
  assert_same(none, value_and_gradient(fused, arrays, lengths.at[0].set(0)), 2e-5)


@pytest.mark.parametrize("hopper, widest", [(True, 128), (False, 64)])
def test_cudnns_calls_lower_for_cuda(hopper, widest, monkeypatch):
  """The library then checks shapes and dtypes as on a GPU, whose version and kind it is told."""
  library = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
  monkeypatch.setattr(library, "check_cudnn_version", lambda: 91000)
  monkeypatch.setattr(library, "check_compute_capability", lambda least: hopper or least < "9")

  def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.bfloat16)

  arrays = (
    shape(16, 500, 9, widest),
    (shape(16, 500, 3, widest),) * 2,
    (shape(2, 700, 3, widest),) * 2,
  )

  def loss(arrays, lengths):
    return jnp.sum(fused(arrays, lengths, forward="cudnn").astype(jnp.float32))

  traced = jax.jit(jax.grad(loss)).trace(arrays, jax.ShapeDtypeStruct((2,), jnp.int32))
  text = traced.lower(lowering_platforms=("cuda",)).as_text()
  assert text.count("@__cudnn$fmhaSoftmax(") == 4  # two of each segment


def test_log_sum_exp_of_half_precision_is_not_rounded_to_it():
  """The library rounds it by up to 0.06 here, which would shift a segment's share by 6 %."""
  (query, _, prompt), _ = inputs(prompts=1, rollouts=4, time=16, prompt_time=200, width=16)
  query, key, value = (x.astype(jnp.bfloat16) for x in (query.reshape(1, 64, 4, 16), *prompt))
  _, ours = cudnn_segment.cudnn_segment(query, key, value, implementation="xla")
  _, rounded = jax.nn.dot_product_attention(query, key, value, return_residual=True)
  grouped = query.astype(jnp.float32).reshape(1, 64, 2, 2, 16)
  scores = jnp.einsum("btkgh,bskh->btkgs", grouped, key.astype(jnp.float32)) / 4
  exact = jax.nn.logsumexp(scores, axis=-1).reshape(1, 64, 4)
  assert float(jnp.max(jnp.abs(ours - exact))) < 1e-3
  assert float(jnp.max(jnp.abs(rounded.astype(jnp.float32) - exact))) > 0.03


def temporaries(attention, time, prompt_time):
  arrays, lengths = inputs(
    prompts=1, rollouts=2, time=time, prompt_time=prompt_time, heads=2, kv_heads=1
  )
  gradient = jax.jit(jax.grad(lambda arrays: jnp.sum(attention(arrays, lengths) ** 2)))
  return gradient.lower(arrays).compile().memory_analysis().temp_size_in_bytes


def test_memory_of_the_gradient_does_not_grow_with_time_times_keys():
  scores = 4 * 2 * 2 * 256 * 1024  # float32, of one array
  assert temporaries(plain, 256, 1024) > 2 * scores
  short, long = (temporaries(fused, 256, keys) for keys in (1024, 4096))
  assert short < scores
  # Three times the keys more: their own copies in blocks, not 12 MB of scores.
  assert long - short < 0.1 * 3 * scores


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "qwen"])
def test_policy_gradient_of_the_model_is_the_defaults(name):
  policy, rollouts = tiny_policy(CONFIGS[name], remat="full"), make_rollouts()
  advantages = np.random.default_rng(0).normal(size=(2, 3, 1)).astype(np.float32)

  def scored(attention):
    one = dataclasses.replace(policy, attention=attention)

    def loss(params):
      logprobs = group_logprobs(one, params, rollouts).logprobs
      return jnp.sum(advantages * logprobs), logprobs

    gradient, logprobs = jax.jit(jax.grad(loss, has_aux=True))(policy.params)
    return logprobs, gradient

  (logprobs, gradient), (expected, expected_gradient) = scored("fused"), scored("auto")
  np.testing.assert_allclose(logprobs, expected, atol=2e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4, rtol=1e-4), gradient, expected_gradient
  )


@pytest.mark.slow
def test_rows_and_prefill_of_the_model_are_the_defaults():
  policy = tiny_policy(CONFIGS["qwen"])
  other = dataclasses.replace(policy, attention="fused")
  tokens = np.random.default_rng(0).integers(0, 97, (2, 9))
  lengths = np.asarray([9, 6])
  first, second = (
    (
      token_logprobs(p, p.params, tokens, np.asarray([2, 3]), lengths).logprobs,
      p.prefill(p.params, jnp.asarray(tokens), jnp.asarray(lengths)).hidden,
    )
    for p in (policy, other)
  )
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-5), first, second)


def test_impossible_arguments_are_refused():
  (query, own, prompt), lengths = inputs()
  with pytest.raises(ValueError, match="both or neither"):
    fused_segment_attention(query, own, prompt)
  with pytest.raises(ValueError, match="5 rows cannot share 2 prompts"):
    fused_segment_attention(query[:5], own, prompt, lengths)
  for forward in ("cudnn", "splash"):
    with pytest.raises(ValueError, match=f'"{forward}" knows no sliding_window=3'):
      fused_segment_attention(query, own, prompt, lengths, sliding_window=3, forward=forward)
