"""The language-model head and its log-probabilities, without the logits of a whole batch.

Hidden states of the tokens that count are gathered to the front and go through the head in chunks;
chunks of padding are never computed. The forward pass keeps one log-sum-exp a token, the backward
pass recomputes each chunk's logits and adds to the head's gradient in place. So the largest buffer
is `[chunk, V]`.

Axes: n tokens, D model, V vocabulary.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

_CHUNK_BYTES = 1 << 27


class HeadOptions(NamedTuple):
  """Static options of `fused_logprobs`.

  Attributes:
    vocabulary_first: the weight is `[V, D]` rather than `[D, V]`.
    temperature: divides the logits.
    with_entropy: compute the entropy as well.
    chunk: tokens a chunk.
  """

  vocabulary_first: bool
  temperature: float
  with_entropy: bool
  chunk: int


def default_chunk(tokens: int, vocab_size: int) -> int:
  """Tokens a chunk: even parts whose `[chunk, V]` float32 buffer takes at most about 128 MiB."""
  fitting = max(16, _CHUNK_BYTES // (4 * vocab_size) // 16 * 16)
  parts = -(-tokens // fitting)
  return min(-(-tokens // (16 * parts)) * 16, tokens)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def fused_logprobs(
  hidden: Float[Array, "n D"],
  weight: Float[Array, "V D"] | Float[Array, "D V"],
  targets: Int[Array, "n"],
  valid: Bool[Array, "n"],
  options: HeadOptions,
) -> tuple[Float[Array, "n"], Float[Array, "n"]]:
  """(log-probability of each target, entropy of its distribution), float32, 0 where not valid.

  log p_i = z_i[target_i] - logsumexp(z_i),  z_i = hidden_i W / temperature
  """
  outputs, _ = _forward(hidden, weight, targets, valid, options)
  return outputs


def _forward(hidden, weight, targets, valid, options):
  chex.assert_rank([hidden, weight, targets, valid], [2, 2, 1, 1])
  order, inverse, chunks = _compact(valid, options.chunk)
  tokens, ordered_hidden = targets[order], hidden[order]

  def step(index: Array, results: tuple[Array, ...]) -> tuple[Array, ...]:
    start = index * options.chunk
    scaled = _chunk_logits(_take(ordered_hidden, start, options), weight, options)
    peak = jnp.max(scaled, axis=-1)
    total = jnp.sum(jnp.exp(scaled - peak[:, None]), axis=-1)
    log_total = peak + jnp.log(total)
    chosen = jnp.take_along_axis(scaled, _take(tokens, start, options)[:, None], axis=-1)[:, 0]
    new = [chosen - log_total, log_total]
    if options.with_entropy:
      mean = jnp.sum(jnp.exp(scaled - peak[:, None]) * scaled, axis=-1) / total
      new.append(log_total - mean)
    return tuple(
      jax.lax.dynamic_update_slice_in_dim(old, value, start, axis=0)
      for old, value in zip(results, new, strict=True)
    )

  zeros = jnp.zeros(order.shape, jnp.float32)
  start = (zeros,) * (3 if options.with_entropy else 2)
  logprobs, log_totals, *entropies = jax.lax.fori_loop(0, chunks, step, start)
  entropy = entropies[0] if options.with_entropy else zeros
  outputs = (jnp.where(valid, logprobs[inverse], 0.0), jnp.where(valid, entropy[inverse], 0.0))
  return outputs, (hidden, weight, targets, valid, log_totals, entropy)


def _backward(options, residuals, cotangents):
  hidden, weight, targets, valid, log_totals, entropy = residuals
  order, inverse, chunks = _compact(valid, options.chunk)
  tokens, ordered_hidden = targets[order], hidden[order]
  # The padding of the last chunk repeats a token, which must count once.
  kept = valid[order] & (jnp.arange(order.size) < valid.size)
  logprob_gradient, entropy_gradient = (
    jnp.where(kept, cotangent[order], 0.0) for cotangent in cotangents
  )
  vocabulary = jnp.arange(weight.shape[0 if options.vocabulary_first else 1])

  def step(index: Array, gradients: tuple[Array, Array]) -> tuple[Array, Array]:
    hidden_gradient, weight_gradient = gradients
    start = index * options.chunk
    rows = _take(ordered_hidden, start, options)
    log_p = _chunk_logits(rows, weight, options) - _take(log_totals, start, options)[:, None]
    p = jnp.exp(log_p)
    slope = _take(logprob_gradient, start, options)[:, None]
    hit = vocabulary == _take(tokens, start, options)[:, None]
    logits_gradient = jnp.where(hit, slope, 0.0) - p * slope
    if options.with_entropy:
      # dH / dz = -p (log p + H)
      entropies = _take(entropy, start, options)[:, None]
      outer = _take(entropy_gradient, start, options)[:, None]
      logits_gradient = logits_gradient - outer * p * (log_p + entropies)
    logits_gradient = (logits_gradient / options.temperature).astype(hidden.dtype)
    cast = weight.astype(hidden.dtype)
    if options.vocabulary_first:
      to_hidden = logits_gradient @ cast
      to_weight = jnp.einsum("nv,nd->vd", logits_gradient, rows, preferred_element_type=jnp.float32)
    else:
      to_hidden = logits_gradient @ cast.T
      to_weight = jnp.einsum("nd,nv->dv", rows, logits_gradient, preferred_element_type=jnp.float32)
    hidden_gradient = jax.lax.dynamic_update_slice_in_dim(
      hidden_gradient, to_hidden.astype(hidden.dtype), start, axis=0
    )
    return hidden_gradient, weight_gradient + to_weight

  start = (jnp.zeros_like(ordered_hidden), jnp.zeros(weight.shape, jnp.float32))
  hidden_gradient, weight_gradient = jax.lax.fori_loop(0, chunks, step, start)
  return (
    jnp.where(valid[:, None], hidden_gradient[inverse], 0).astype(hidden.dtype),
    weight_gradient.astype(weight.dtype),
    np.zeros(targets.shape, jax.dtypes.float0),
    np.zeros(valid.shape, jax.dtypes.float0),
  )


fused_logprobs.defvjp(_forward, _backward)


def _compact(valid: Bool[Array, "n"], chunk: int) -> tuple[Array, Array, Array]:
  """(valid tokens first, padded to whole chunks; places of the tokens in it; chunks that count)."""
  count = valid.shape[0]
  order = jnp.argsort(~valid, stable=True)
  inverse = jnp.zeros((count,), jnp.int32).at[order].set(jnp.arange(count, dtype=jnp.int32))
  order = jnp.pad(order, (0, -count % chunk), mode="edge")
  return order, inverse, (jnp.sum(valid) + chunk - 1) // chunk


def _take(values: Array, start: Array, options: HeadOptions) -> Array:
  return jax.lax.dynamic_slice_in_dim(values, start, options.chunk, axis=0)


def _chunk_logits(rows: Array, weight: Any, options: HeadOptions) -> Float[Array, "chunk V"]:
  equation = "nd,vd->nv" if options.vocabulary_first else "nd,dv->nv"
  scores = jnp.einsum(equation, rows, weight.astype(rows.dtype), preferred_element_type=jnp.float32)
  return scores if options.temperature == 1 else scores / options.temperature
