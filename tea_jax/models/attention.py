"""Attention over one or two segments of keys, with grouped key/value heads.

Rows are left-aligned, so a causal mask alone is right where a row is attended to by itself: padding
lies to the right and no valid token sees it. A group of rollouts shares its prompt's keys: the two
segments (prompt, completion) meet in one softmax and the prompt is never repeated.

Axes: P prompts, m rollouts of each, T and S time, N query heads, K key heads, G = N / K, H width.
"""

from __future__ import annotations

import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tea_jax.models.cudnn_segment import cudnn_takes
from tea_jax.models.fused_attention import fused_segment_attention
from tea_jax.models.visibility import visible_keys

AttentionKind = Literal["auto", "xla", "cudnn", "fused"]

# Finite: a row of padding that may attend to nothing stays finite, and its gradient too.
MASKED = -1e30


def causal_attention(
  query: Float[Array, "B T N H"],
  key: Float[Array, "B T K H"],
  value: Float[Array, "B T K H"],
  *,
  lengths: Int[Array, "B"] | None = None,
  sliding_window: int | None = None,
  kind: AttentionKind = "auto",
) -> Float[Array, "B T N H"]:
  """Softmax attention of each row to its own past, float32 softmax.

  Args:
    query, key, value: one segment, left-aligned.
    lengths: valid tokens of each row; only cuDNN uses it, to skip padding.
    sliding_window: keys a query may look back on, itself included.
    kind: `"cudnn"` on GPU in half precision, `"xla"` anywhere, `"auto"` chooses; `"fused"` is cuDNN
      where `"auto"` is, and `fused_attention` elsewhere.

  Returns:
    Attended values; what stands on padding means nothing.
  """
  if kind in ("auto", "fused") and cudnn_takes(query.dtype, query.shape[-1]):
    kind = "cudnn"
  if kind == "fused":
    return fused_segment_attention(query, (key, value), sliding_window=sliding_window)
  if kind == "cudnn":
    window = None if sliding_window is None else (sliding_window - 1, 0)
    return jax.nn.dot_product_attention(
      query,
      key,
      value,
      is_causal=True,
      query_seq_lengths=lengths,
      key_value_seq_lengths=lengths,
      local_window_size=window,
      implementation="cudnn",
    )
  positions = jnp.arange(query.shape[1])
  visible = visible_keys(positions, positions, sliding_window)
  return segment_attention(query, [(key, value, visible[None])])


def segment_attention(
  query: Float[Array, "B T N H"],
  segments: list[tuple[Array, Array, Array]],
) -> Float[Array, "B T N H"]:
  """Attention over several segments of keys in one softmax.

  Args:
    query: `[B, T, N, H]`.
    segments: (key `[b, S, K, H]`, value `[b, S, K, H]`, visible `[1 or B, T, S]`) each, where b
      divides B: a segment of b < B rows is shared by the B / b neighbouring rows of the query.

  Returns:
    `[B, T, N, H]` in the dtype of the query.
  """
  batch, time, heads, width = query.shape
  kv_heads = segments[0][0].shape[2]
  query = query.reshape(batch, time, kv_heads, heads // kv_heads, width)
  scores = []
  for key, _, visible in segments:
    shared = query.reshape(key.shape[0], -1, *query.shape[1:])
    score = jnp.einsum("bmtkgh,bskh->bmkgts", shared, key, preferred_element_type=jnp.float32)
    score = score.reshape(batch, *score.shape[2:]) * width**-0.5
    scores.append(jnp.where(visible[:, None, None], score, MASKED))
  peak = jax.lax.stop_gradient(jnp.max(jnp.stack([s.max(-1) for s in scores]), axis=0))
  weights = [jnp.exp(score - peak[..., None]) for score in scores]
  total = _added([weight.sum(-1) for weight in weights])
  parts = []
  for weight, (_, value, _) in zip(weights, segments, strict=True):
    weight = (weight / total[..., None]).astype(query.dtype)
    shared = weight.reshape(value.shape[0], -1, *weight.shape[1:])
    part = jnp.einsum("bmkgts,bskh->bmtkgh", shared, value)
    parts.append(part.reshape(batch, time, heads, width))
  return _added(parts)


def _added(parts: list[Array]) -> Array:
  return functools.reduce(jnp.add, parts)


class KeyValue(NamedTuple):
  """One layer's cache, laid out so that both products of a decoding step read it in order.

  Attributes:
    key: `[b, K, H, S]`.
    value: `[b, K, S, H]`.
  """

  key: Float[Array, "b K H S"]
  value: Float[Array, "b K S H"]

  def write(
    self, key: Float[Array, "b K H"], value: Float[Array, "b K H"], index: Int[Array, ""]
  ) -> KeyValue:
    """Puts one token a row at place `index`."""
    update = jax.lax.dynamic_update_slice_in_dim
    return KeyValue(
      update(self.key, key[..., None], index, axis=3),
      update(self.value, value[:, :, None], index, axis=2),
    )

  def widen(self, more: int) -> KeyValue:
    """With so many zeroed places more."""
    return KeyValue(
      jnp.pad(self.key, ((0, 0), (0, 0), (0, 0), (0, more))),
      jnp.pad(self.value, ((0, 0), (0, 0), (0, more), (0, 0))),
    )


def as_cache(key: Float[Array, "b S K H"], value: Float[Array, "b S K H"]) -> KeyValue:
  """Keys and values of a segment in the cache's layout."""
  return KeyValue(key.transpose(0, 2, 3, 1), value.transpose(0, 2, 1, 3))


def cached_attention(
  query: Float[Array, "R N H"], segments: list[tuple[KeyValue, Bool[Array, "b S"]]]
) -> Float[Array, "R N H"]:
  """Attention of one token a row over cached segments, in one softmax.

  Args:
    query: `[R, N, H]`.
    segments: cache of b rows and which of its keys are visible, `[b, S]` or `[1, S]`; b divides R
      and a row of the segment is shared by the R / b neighbouring queries.

  Returns:
    `[R, N, H]` in the dtype of the query.
  """
  scores = [_cached_scores(query, *segment) for segment in segments]
  peak = jnp.max(jnp.stack([score.max(-1) for score in scores]), axis=0)
  weights = [jnp.exp(score - peak[..., None]) for score in scores]
  total = _added([weight.sum(-1) for weight in weights])
  parts = [
    _cached_values(weight.astype(query.dtype), cache)
    for weight, (cache, _) in zip(weights, segments, strict=True)
  ]
  attended = _added(parts) / total[..., None]
  return attended.astype(query.dtype).reshape(query.shape)


def cached_segment(
  query: Float[Array, "R N H"], cache: KeyValue, visible: Bool[Array, "b S"]
) -> tuple[Float[Array, "R N H"], Float[Array, "R N"], Float[Array, "R N"]]:
  """One segment of `cached_attention`, to be joined to others by its log-sum-exp.

  Returns:
    Float32 (sum of exp(score - peak) times value, sum of exp(score - peak), peak); a query that
    sees no key of the segment has a peak of `MASKED`.
  """
  score = _cached_scores(query, cache, visible)
  peak = score.max(-1)
  weight = jnp.exp(score - peak[..., None])
  part = _cached_values(weight.astype(query.dtype), cache)
  heads = query.shape[:2]
  return part.reshape(query.shape), weight.sum(-1).reshape(heads), peak.reshape(heads)


def _cached_scores(
  query: Float[Array, "R N H"], cache: KeyValue, visible: Bool[Array, "b S"]
) -> Float[Array, "R K G S"]:
  """Float32 scores of one segment; `MASKED` where a key is not visible."""
  rows, heads, width = query.shape
  batch, kv_heads = cache.key.shape[:2]
  query = query.reshape(rows, kv_heads, heads // kv_heads, width)
  score = jnp.einsum(
    "bknh,bkhs->bkns",
    _per_segment(query, batch),
    cache.key,
    preferred_element_type=jnp.float32,
  )
  score = jnp.where(visible[:, None, None], score * width**-0.5, MASKED)
  return _per_row(score, rows)


def _cached_values(weight: Float[Array, "R K G S"], cache: KeyValue) -> Float[Array, "R K G H"]:
  part = jnp.einsum(
    "bkns,bksh->bknh",
    _per_segment(weight, cache.value.shape[0]),
    cache.value,
    preferred_element_type=jnp.float32,
  )
  return _per_row(part, weight.shape[0])


def _per_segment(x: Float[Array, "R K G H"], batch: int) -> Float[Array, "b K n H"]:
  """The queries that share a segment's row on one axis: n = R / b * G."""
  rows, kv_heads = x.shape[:2]
  if batch == rows:
    return x
  x = x.reshape(batch, rows // batch, *x.shape[1:]).swapaxes(1, 2)
  return x.reshape(batch, kv_heads, -1, x.shape[-1])


def _per_row(x: Float[Array, "b K n H"], rows: int) -> Float[Array, "R K G H"]:
  batch, kv_heads = x.shape[:2]
  if batch == rows:
    return x
  x = x.reshape(batch, kv_heads, rows // batch, -1, x.shape[-1]).swapaxes(1, 2)
  return x.reshape(rows, kv_heads, -1, x.shape[-1])
