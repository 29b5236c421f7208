"""Attention of a group's completions without arrays of all scores, with a gradient of its own.

Each segment of keys (the prompt that the rollouts share, the completion so far) is attended to on
its own, in blocks of keys. It gives values O_i and the log-sum-exp of its scores, by which the
segments meet in one softmax:

  lse = log sum_i exp(lse_i),  O = sum_i exp(lse_i - lse) O_i

The backward pass takes no gradient of any lse_i. P = exp(S - lse), with the lse of all segments
together, are the weights of that one softmax, so that in each segment alone

  dS = P * (dO V^T - delta),  delta = sum_h dO * O

and only queries, keys, values, O and lse are kept (FlashAttention-2, arXiv 2307.08691). Automatic
differentiation of the merge would be wrong in silence where a library's kernel gives O_i and lse_i:
that of `jax.nn.dot_product_attention(return_residual=True)` drops the gradient of lse_i.

Axes: B = P m rows, b rows of a segment, R queries' heads and rollouts that share a key head, T
queries, S keys, N query heads, K key heads, H width.
"""

from __future__ import annotations

import functools
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from tea_jax.models.cudnn_segment import cudnn_segment, cudnn_segment_takes
from tea_jax.models.splash_segment import splash_segment, splash_segment_takes
from tea_jax.models.visibility import visible_keys

SegmentForward = Literal["auto", "xla", "cudnn", "splash"]
KeysValues = tuple[Array, Array]

KEY_BLOCK = 128
"""Keys whose scores exist at a time."""

# Of one segment on an accelerator; none knows a window over a prompt.
_KERNELS = {"cudnn": cudnn_segment, "splash": splash_segment}

# Finite, so that a block of which a query sees nothing has a peak to subtract.
_UNSEEN = -1e30


class _Options(NamedTuple):
  sliding_window: int | None
  forward: Literal["xla", "cudnn", "splash"]


class _Segment(NamedTuple):
  """Keys, and what queries see of them; leading axis of positions and lengths: b, or 1 for all.

  Attributes:
    key, value: `[b, S, K, H]`.
    positions: `[b, T]` of the queries, counted from the segment's first key.
    lengths: `[b]` keys that are not padding.
    causal: query t sees the keys 0 to t; else all that are not padding, but for a window.
  """

  key: Float[Array, "b S K H"]
  value: Float[Array, "b S K H"]
  positions: Int[Array, "b T"]
  lengths: Int[Array, "b"]
  causal: bool


def fused_segment_attention(
  query: Float[Array, "B T N H"],
  own: KeysValues,
  prompt: KeysValues | None = None,
  prompt_lengths: Int[Array, "P"] | None = None,
  *,
  sliding_window: int | None = None,
  forward: SegmentForward = "auto",
) -> Float[Array, "B T N H"]:
  """`attention.segment_attention` of rows to their own past, and to a shared prompt before it.

  Args:
    query: `[B, T, N, H]`, rows of a prompt next to each other.
    own: (key, value), each `[B, T, K, H]`: query t sees the keys 0 to t.
    prompt: (key, value), each `[P, T_p, K, H]`, left-aligned; P divides B.
    prompt_lengths: `[P]` keys of the prompt that are not padding; 0 is allowed.
    sliding_window: keys a query may look back on, itself included.
    forward: `"xla"` anywhere; without a window `"cudnn"` on GPU in half precision and `"splash"` on
      one TPU; `"auto"` chooses. The backward pass is the same for all. Neither kernel was run on
      its hardware yet.

  Returns:
    `[B, T, N, H]` in the dtype of the query.

  Raises:
    ValueError: for a prompt without lengths, rows that prompts do not share evenly, or a kernel
      with a window.

  Example:
    >>> query = jax.random.normal(jax.random.key(0), (6, 5, 4, 8))  # 2 prompts, 3 rollouts of each
    >>> own, prompt = jnp.ones((6, 5, 2, 8)), jnp.ones((2, 7, 2, 8))
    >>> lengths = jnp.array([7, 4])
    >>> fused_segment_attention(query, (own, own), (prompt, prompt), lengths).shape
    (6, 5, 4, 8)
  """
  chex.assert_rank([query, *own, *(prompt or ())], 4)
  if (prompt is None) != (prompt_lengths is None):
    raise ValueError("prompt and prompt_lengths belong together; give both or neither")
  if prompt is not None and query.shape[0] % prompt[0].shape[0]:
    raise ValueError(
      f"{query.shape[0]} rows cannot share {prompt[0].shape[0]} prompts; every prompt needs as many"
    )
  if forward in _KERNELS and sliding_window is not None:
    raise ValueError(
      f'forward="{forward}" knows no sliding_window={sliding_window}; choose "xla" or "auto"'
    )
  if forward == "auto":
    forward = _best_forward(query.dtype, query.shape[-1], sliding_window)
  return _attention(_Options(sliding_window, forward), query, own, prompt, prompt_lengths)


def _best_forward(dtype: Any, width: int, window: int | None) -> Literal["xla", "cudnn", "splash"]:
  if window is not None:
    return "xla"
  if cudnn_segment_takes(dtype, width):
    return "cudnn"
  return "splash" if splash_segment_takes(width) else "xla"


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(options, query, own, prompt, prompt_lengths):
  return _forward(options, query, own, prompt, prompt_lengths)[0]


def _forward(options, query, own, prompt, prompt_lengths):
  parts = []
  for segment in _segments(query, own, prompt, prompt_lengths):
    if options.forward == "xla":
      parts.append(_by_blocks(query, segment, options.sliding_window))
    else:
      parts.append(_by_kernel(_KERNELS[options.forward], query, segment))
  log_totals = jnp.stack([log_total for _, log_total in parts])
  peak = jnp.max(log_totals, axis=0)
  peak = jnp.where(jnp.isfinite(peak), peak, 0.0)  # a row that sees no key at all
  total = jnp.sum(jnp.exp(log_totals - peak), axis=0)
  log_total = peak + jnp.log(jnp.where(total > 0, total, 1.0))
  shares = jnp.exp(log_totals - log_total)
  attended = sum(share[..., None] * part for share, (part, _) in zip(shares, parts, strict=True))
  attended = jnp.asarray(attended, query.dtype)
  return attended, (query, own, prompt, prompt_lengths, attended, log_total)


def _backward(options, residuals, outer):
  query, own, prompt, prompt_lengths, attended, log_total = residuals
  delta = jnp.sum(outer.astype(jnp.float32) * attended.astype(jnp.float32), axis=-1)
  to_query, to_segments = 0.0, []
  for segment in _segments(query, own, prompt, prompt_lengths):
    part, *to_segment = _segment_gradient(
      query, segment, log_total, outer, delta, options.sliding_window
    )
    to_query = to_query + part
    to_segments.append(tuple(to_segment))
  to_lengths = None
  if prompt is not None:
    to_lengths = np.zeros(prompt_lengths.shape, jax.dtypes.float0)
  to_own, to_prompt = (*to_segments, None)[:2]
  return jnp.asarray(to_query, query.dtype), to_own, to_prompt, to_lengths


_attention.defvjp(_forward, _backward)


def _segments(query: Array, own: Any, prompt: Any, prompt_lengths: Any) -> list[_Segment]:
  """The row's own past first, then the prompt, if any."""
  steps = jnp.arange(query.shape[1])[None]
  (key, value), every = own, jnp.full((1,), own[0].shape[1])
  segments = [_Segment(key, value, steps, every, causal=True)]
  if prompt is not None:
    key, value = prompt
    positions = prompt_lengths[:, None] + steps
    segments.append(_Segment(key, value, positions, prompt_lengths, causal=False))
  return segments


def _by_kernel(kernel: Any, query: Array, segment: _Segment) -> tuple[Array, Array]:
  """Values and log-sum-exp of one segment; a prompt's rollouts are more queries of its row."""
  shared = query.reshape(segment.key.shape[0], -1, *query.shape[2:])
  lengths = None if segment.causal else segment.lengths
  attended, log_total = kernel(shared, segment.key, segment.value, lengths, causal=segment.causal)
  return attended.reshape(query.shape), log_total.reshape(query.shape[:-1])


def _by_blocks(query: Array, segment: _Segment, window: int | None) -> tuple[Array, Array]:
  """Float32 values and log-sum-exp of one segment, a block of keys after the other."""
  folded = _folded(query, segment)

  def step(carry: tuple[Array, Array, Array], block: Any) -> tuple[Any, None]:
    attended, peak, total = carry
    score, visible = _scores(folded, segment, block, window)
    new_peak = jnp.maximum(peak, jnp.max(jnp.where(visible, score, _UNSEEN), axis=-1))
    weight = jnp.where(visible, jnp.exp(score - new_peak[..., None]), 0.0)
    shrink = jnp.exp(peak - new_peak)
    part = _product("bkrts,bksh->bkrth", weight.astype(query.dtype), block[1])
    attended = attended * shrink[..., None] + part
    return (attended, new_peak, total * shrink + jnp.sum(weight, axis=-1)), None

  zeros = jnp.zeros(folded.shape[:-1], jnp.float32)
  start = (jnp.zeros(folded.shape, jnp.float32), zeros + _UNSEEN, zeros)
  (attended, peak, total), _ = jax.lax.scan(step, start, _blocks(segment))
  some = jnp.where(total > 0, total, 1.0)
  log_total = jnp.where(total > 0, peak + jnp.log(some), -jnp.inf)
  return _unfolded(attended / some[..., None], query), _unfolded(log_total, query)


def _segment_gradient(
  query: Array,
  segment: _Segment,
  log_total: Float[Array, "B T N"],
  outer: Float[Array, "B T N H"],
  delta: Float[Array, "B T N"],
  window: int | None,
) -> tuple[Array, Array, Array]:
  """Gradients of the query (float32), keys and values, given the log-sum-exp of all segments."""
  folded, log_total, outer, delta = (_folded(x, segment) for x in (query, log_total, outer, delta))

  def step(to_query: Array, block: Any) -> tuple[Array, tuple[Array, Array]]:
    key, value, _ = block
    score, visible = _scores(folded, segment, block, window)
    weight = jnp.where(visible, jnp.exp(score - log_total[..., None]), 0.0)
    to_weight = _product("bkrth,bksh->bkrts", outer, value)
    to_score = weight * (to_weight - delta[..., None]) * query.shape[-1] ** -0.5
    to_score, weight = to_score.astype(query.dtype), weight.astype(query.dtype)
    to_key = _product("bkrts,bkrth->bksh", to_score, folded)
    to_value = _product("bkrts,bkrth->bksh", weight, outer)
    to_query += _product("bkrts,bksh->bkrth", to_score, key)
    return to_query, (to_key.astype(key.dtype), to_value.astype(value.dtype))

  start = jnp.zeros(folded.shape, jnp.float32)
  to_query, blocks = jax.lax.scan(step, start, _blocks(segment))
  to_key, to_value = (_joined(x, segment.key.shape[1]) for x in blocks)
  return _unfolded(to_query, query), to_key, to_value


def _scores(
  folded: Float[Array, "b K R T H"], segment: _Segment, block: Any, window: int | None
) -> tuple[Float[Array, "b K R T s"], Bool[Array, "b 1 1 T s"]]:
  """Float32 scores of a block of keys, and which of them count."""
  key, _, first = block
  score = _product("bkrth,bksh->bkrts", folded, key) * folded.shape[-1] ** -0.5
  places = first + jnp.arange(key.shape[2])[None]
  visible = visible_keys(segment.positions, places, window)
  visible &= (places < segment.lengths[:, None])[:, None]
  return score, visible[:, None, None]


def _product(equation: str, first: Array, second: Array) -> Array:
  return jnp.einsum(equation, first, second, preferred_element_type=jnp.float32)


def _blocks(segment: _Segment) -> tuple[Array, Array, Array]:
  """Keys and values `[blocks, b, K, s, H]` in even blocks, and each block's first place."""
  length = segment.key.shape[1]
  count = -(-length // KEY_BLOCK)
  size = -(-length // count)

  def cut(x: Array) -> Array:
    x = jnp.pad(x, ((0, 0), (0, count * size - length), (0, 0), (0, 0)))
    return x.reshape(x.shape[0], count, size, *x.shape[2:]).transpose(1, 0, 3, 2, 4)

  return cut(segment.key), cut(segment.value), jnp.arange(count) * size


def _joined(blocks: Float[Array, "blocks b K s H"], length: int) -> Float[Array, "b S K H"]:
  blocks = blocks.transpose(1, 0, 3, 2, 4)
  return blocks.reshape(blocks.shape[0], -1, *blocks.shape[3:])[:, :length]


def _folded(x: Float[Array, "B T N *H"], segment: _Segment) -> Float[Array, "b K R T *H"]:
  """Rows of a segment's row and query heads of a key head on one axis, beside the key heads."""
  rows, kv_heads = segment.key.shape[0], segment.key.shape[2]
  x = x.reshape(rows, -1, x.shape[1], kv_heads, x.shape[2] // kv_heads, *x.shape[3:])
  x = jnp.moveaxis(x, (3, 1, 4, 2), (1, 2, 3, 4))
  return x.reshape(rows, kv_heads, -1, *x.shape[4:])


def _unfolded(x: Float[Array, "b K R T *H"], query: Array) -> Float[Array, "B T N *H"]:
  batch, time, heads = query.shape[:3]
  rows, kv_heads = x.shape[:2]
  x = x.reshape(rows, kv_heads, batch // rows, heads // kv_heads, *x.shape[3:])
  x = jnp.moveaxis(x, (1, 2, 3, 4), (3, 1, 4, 2))
  return x.reshape(batch, time, heads, *x.shape[5:])
