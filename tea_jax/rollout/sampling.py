"""From logits to one token a row: processors, then an inverse-CDF draw from one pair of uniforms.

A row's token depends on its own logits and its own uniforms only. Processors act in the order of
`transformers`: repetition penalty, temperature, top-k, top-p, min-p. Each keeps a set of tokens by
a threshold on the logit, found by bisection on the bits of the floats, which is exact and needs no
sort of the vocabulary; tokens that tie with the threshold are all kept.

Axes: R rows, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tea_jax.models.decode_attention import DecodeAttentionKind

_BLOCKS = 128


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
  """How completions are drawn; checked when it is made.

  Attributes:
    temperature: divides the logits; 0 takes the most likely token (for evaluation only: such
      rollouts are no samples of the policy).
    top_k: keep the k most likely tokens; 0 keeps all.
    top_p: keep the smallest set of most likely tokens whose mass reaches top_p; 1 keeps all.
    min_p: keep tokens at least min_p times as likely as the most likely one; 0 keeps all.
    repetition_penalty: divides positive and multiplies negative logits of tokens that stand in the
      prompt or the completion; 1 changes nothing.
    stop_tokens: ids that end a completion (and belong to it); None means the model's own.
    stop_strings: texts that end a completion with the token that completes them.
    max_completion_length: tokens after which a completion is cut.
    compactions: times that the rows that still write move into half the places, see `survivors`.
      Each compiles one more shape, which may change the last bits of a logit.
    cache_buckets: sizes through which the completions' caches grow, see `cache_growth`; 1 keeps
      them whole. The same holds of each.
    decode_attention: of a decoding step, see `models.decode_attention`.
  """

  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  min_p: float = 0.0
  repetition_penalty: float = 1.0
  stop_tokens: tuple[int, ...] | None = None
  stop_strings: tuple[str, ...] = ()
  max_completion_length: int = 256
  compactions: int = 0
  cache_buckets: int = 1
  decode_attention: DecodeAttentionKind = "xla"

  def __post_init__(self):
    if not (math.isfinite(self.temperature) and self.temperature >= 0):
      raise ValueError(
        f"temperature={self.temperature} is not a finite number >= 0; use a positive one to sample,"
        " or 0 for the most likely token"
      )
    if self.top_k < 0:
      raise ValueError(f"top_k={self.top_k} is negative; use 0 to keep every token")
    if not 0 < self.top_p <= 1:
      raise ValueError(f"top_p={self.top_p} is outside (0, 1]; use 1 to keep every token")
    if not 0 <= self.min_p <= 1:
      raise ValueError(f"min_p={self.min_p} is outside [0, 1]; use 0 to keep every token")
    if not (math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0):
      raise ValueError(
        f"repetition_penalty={self.repetition_penalty} is not a finite number > 0; 1 turns it off"
      )
    if self.max_completion_length < 1:
      raise ValueError(f"max_completion_length={self.max_completion_length} must be at least 1")
    if not 0 <= self.compactions <= 3:
      raise ValueError(f"compactions={self.compactions} must be from 0 to 3")
    if not 1 <= self.cache_buckets <= 8:
      raise ValueError(f"cache_buckets={self.cache_buckets} must be from 1 to 8")
    for text in self.stop_strings:
      if not text:
        raise ValueError("stop_strings holds an empty string, which would end every completion")

  @property
  def greedy(self) -> bool:
    return self.temperature == 0

  @property
  def truncated(self) -> bool:
    """True if the sampled distribution is not the full softmax at the temperature."""
    return self.top_k > 0 or self.top_p < 1 or self.min_p > 0 or self.repetition_penalty != 1


class Sample(NamedTuple):
  """One token a row.

  Attributes:
    tokens: `[R]`.
    logprobs: `[R]` under the softmax of the unprocessed logits at the temperature.
    sampling_logprobs: `[R]` under the processed distribution that was sampled.
  """

  tokens: Int[Array, "R"]
  logprobs: Float[Array, "R"]
  sampling_logprobs: Float[Array, "R"]


def penalize_repetition(
  logits: Float[Array, "R V"], seen: Bool[Array, "R V"], penalty: float
) -> Float[Array, "R V"]:
  """Makes tokens that were seen less likely by `penalty` (> 1), whatever the logit's sign."""
  penalized = jnp.where(logits > 0, logits / penalty, logits * penalty)
  return jnp.where(seen, penalized, logits)


def keep_top_k(logits: Float[Array, "R V"], top_k: int) -> Float[Array, "R V"]:
  """-inf outside the `top_k` largest logits (ties with the last one kept)."""
  if top_k <= 0 or top_k >= logits.shape[-1]:
    return logits
  threshold = _threshold(logits, jnp.ones_like(logits), jnp.asarray(top_k, jnp.float32))
  return jnp.where(logits >= threshold, logits, -jnp.inf)


def keep_top_p(logits: Float[Array, "R V"], top_p: float) -> Float[Array, "R V"]:
  """-inf outside the smallest set of most likely tokens with mass >= `top_p`."""
  if top_p >= 1:
    return logits
  mass = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
  # The most likely token always stays: its mass alone is compared with at most the whole sum.
  target = top_p * jnp.sum(mass, axis=-1, keepdims=True)
  threshold = _threshold(logits, mass, target)
  return jnp.where(logits >= threshold, logits, -jnp.inf)


def keep_min_p(logits: Float[Array, "R V"], min_p: float) -> Float[Array, "R V"]:
  """-inf for tokens less likely than `min_p` times the most likely one."""
  if min_p <= 0:
    return logits
  threshold = jnp.max(logits, axis=-1, keepdims=True) + math.log(min_p)
  return jnp.where(logits >= threshold, logits, -jnp.inf)


def _ordered_bits(x: Float[Array, "*batch"]) -> Int[Array, "*batch"]:
  """int32 that sort like the float32 they come from."""
  bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32)
  return jnp.where(bits >= 0, bits, bits ^ 0x7FFFFFFF)


def _threshold(
  logits: Float[Array, "R V"], weights: Float[Array, "R V"], target: Float[Array, "*R1"]
) -> Float[Array, "R 1"]:
  """Largest t such that the weights of logits >= t sum to at least `target`."""
  order = _ordered_bits(logits)

  def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
    low, high = bounds
    # Overflow-free ceiling of the mean; high is the best candidate not yet refused.
    middle = (low >> 1) + (high >> 1) + ((low | high) & 1)
    reached = jnp.sum(jnp.where(order >= middle, weights, 0), axis=-1, keepdims=True) >= target
    return jnp.where(reached, middle, low), jnp.where(reached, high, middle - 1)

  bounds = (jnp.min(order, axis=-1, keepdims=True), jnp.max(order, axis=-1, keepdims=True))
  bits, _ = jax.lax.fori_loop(0, 32, halve, bounds)
  return jax.lax.bitcast_convert_type(jnp.where(bits >= 0, bits, bits ^ 0x7FFFFFFF), jnp.float32)


def process_logits(
  logits: Float[Array, "R V"], sampling: SamplingConfig, seen: Bool[Array, "R V"] | None = None
) -> Float[Array, "R V"]:
  """Logits of the sampled distribution: penalty, temperature, then truncations.

  Args:
    logits: raw float32 logits.
    sampling: what to apply; the temperature must be positive.
    seen: tokens of each row so far, needed for a repetition penalty.
  """
  if sampling.repetition_penalty != 1:
    if seen is None:
      raise ValueError("a repetition penalty needs the tokens seen so far")
    logits = penalize_repetition(logits, seen, sampling.repetition_penalty)
  if sampling.temperature not in (0, 1):
    logits = logits / sampling.temperature
  logits = keep_top_k(logits, sampling.top_k)
  logits = keep_top_p(logits, sampling.top_p)
  return keep_min_p(logits, sampling.min_p)


def sample(
  logits: Float[Array, "R V"],
  uniforms: Float[Array, "R 2"],
  sampling: SamplingConfig,
  seen: Bool[Array, "R V"] | None = None,
) -> Sample:
  """Draws one token a row by inverting the CDF in two levels.

  The vocabulary is split into blocks; the first uniform picks a block by its mass, the second a
  token inside it. Two uniforms of 23 bits resolve the far tail better than one over the whole
  vocabulary, and no cumulative sum runs over V.

  Args:
    logits: `[R, V]` raw float32 logits.
    uniforms: `[R, 2]` in [0, 1), multiples of 2^-23 as `jax.random.uniform` makes them.
    sampling: the distribution.
    seen: see `process_logits`.
  """
  chex.assert_rank([logits, uniforms], [2, 2])
  chex.assert_shape(uniforms, (logits.shape[0], 2))
  scaled = logits if sampling.temperature in (0, 1) else logits / sampling.temperature
  processed = process_logits(logits, sampling, seen) if sampling.truncated else scaled
  if sampling.greedy:
    tokens = jnp.argmax(processed, axis=-1).astype(jnp.int32)
    full = _at(scaled, tokens) - jax.nn.logsumexp(scaled, axis=-1)
    return Sample(tokens, full, jnp.zeros_like(full))
  tokens, chosen, log_total = _invert_cdf(processed, uniforms)
  sampling_logprobs = chosen - log_total
  if not sampling.truncated:
    return Sample(tokens, sampling_logprobs, sampling_logprobs)
  full = _at(scaled, tokens) - jax.nn.logsumexp(scaled, axis=-1)
  return Sample(tokens, full, sampling_logprobs)


def _at(values: Float[Array, "R V"], tokens: Int[Array, "R"]) -> Float[Array, "R"]:
  return jnp.take_along_axis(values, tokens[:, None], axis=-1)[:, 0]


def _invert_cdf(
  logits: Float[Array, "R V"], uniforms: Float[Array, "R 2"]
) -> tuple[Int[Array, "R"], Float[Array, "R"], Float[Array, "R"]]:
  """(tokens, their logits, log of the total mass); block b holds the tokens b, b + blocks, ..."""
  rows, vocabulary = logits.shape
  blocks = min(_BLOCKS, vocabulary)
  depth = -(-vocabulary // blocks)
  if blocks * depth != vocabulary:
    padding = ((0, 0), (0, blocks * depth - vocabulary))
    logits = jnp.pad(logits, padding, constant_values=-jnp.inf)
  # Tokens of a block are strided, so that both reductions run along vectors of the minor axis.
  table = logits.reshape(rows, depth, blocks)
  peak = jnp.max(jnp.max(table, axis=1), axis=-1)
  masses = jnp.sum(jnp.exp(table - peak[:, None, None]), axis=1)
  block, total = _first_beyond(masses, uniforms[:, 0])
  members = jnp.take_along_axis(table, block[:, None, None], axis=2)[:, :, 0]
  member, _ = _first_beyond(jnp.exp(members - peak[:, None]), uniforms[:, 1])
  return member * blocks + block, _at(members, member), peak + jnp.log(total)


def _first_beyond(
  weights: Float[Array, "R n"], uniforms: Float[Array, "R"]
) -> tuple[Int[Array, "R"], Float[Array, "R"]]:
  """Index drawn in proportion to non-negative weights, and their sum; never one of weight 0."""
  cumulative = jnp.cumsum(weights, axis=-1)
  total = cumulative[:, -1]
  # A parallel prefix sum may rise by an ulp over a zero weight: such a place is not a candidate.
  beyond = (cumulative > (uniforms * total)[:, None]) & (weights > 0)
  index = jnp.where(jnp.any(beyond, -1), jnp.argmax(beyond, -1), jnp.argmax(weights, -1))
  return index.astype(jnp.int32), total
