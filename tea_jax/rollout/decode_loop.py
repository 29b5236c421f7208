"""The compiled part of a rollout: prefill and first token, then one loop over tokens.

Axes: P prompts, m rollouts of each, R = P m rows, T_p and T_c time, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jaxtyping import Array, Bool, Float, Int

from tea_jax.models.attention import AttentionKind
from tea_jax.models.causal_lm import Params, logits
from tea_jax.models.config import ModelConfig
from tea_jax.models.decode_attention import XLA, DecodeAttention
from tea_jax.models.decode_sharding import cache_sharding
from tea_jax.models.decoding import Cache, CompletionCache, decode_step, empty_cache, prefill
from tea_jax.models.sharding import parts_of_rows
from tea_jax.rollout.sampling import Sample, SamplingConfig, sample
from tea_jax.rollout.survivors import fits


class DecodeState(NamedTuple):
  """Carry of the decode loop."""

  step: Int[Array, ""]
  tokens: Int[Array, "R T_c"]
  logprobs: Float[Array, "R T_c"]
  sampling_logprobs: Float[Array, "R T_c"]
  lengths: Int[Array, "R"]
  done: Bool[Array, "R"]
  seen: Bool[Array, "R V"] | None
  cache: CompletionCache


@dataclasses.dataclass(frozen=True)
class DecodeProgram:
  """Everything that is static in the compiled functions; equal programs share their compilations.

  Attributes:
    config, dtype, attention: of the policy.
    sampling: how to sample; stop strings and the maximum length play no part here.
    stop_tokens: ids that end a row.
    rows: sharding of the rows over devices; None leaves it to the compiler.
    decode: how a decoding step attends.
  """

  config: ModelConfig
  dtype: Any
  attention: AttentionKind
  sampling: SamplingConfig
  stop_tokens: tuple[int, ...]
  rows: NamedSharding | None = None
  decode: DecodeAttention = XLA

  def start(
    self,
    params: Params,
    weights: Params,
    tokens: Int[Array, "P T_p"],
    lengths: Int[Array, "P"],
    key: Array,
    prompt_ids: Int[Array, "P"],
    rollout_ids: Int[Array, "m"],
    active: Bool[Array, "R"],
    *,
    rollouts: int,
    length: int,
    places: int,
  ) -> tuple[DecodeState, Cache, Float[Array, "T_c R 2"]]:
    """Prefills, draws every uniform of the batch, and samples the first tokens.

    The completions' caches begin with `places` of their `length`, see `cache_growth`.
    """
    if self.rows is not None and tokens.shape[0] % parts_of_rows(self.rows) == 0:
      tokens = jax.lax.with_sharding_constraint(tokens, self.rows)
    filled = prefill(
      self.config, params, tokens, lengths, dtype=self.dtype, attention=self.attention
    )
    rows = tokens.shape[0] * rollouts
    uniforms = token_uniforms(key, prompt_ids, rollout_ids, length)
    seen = None
    if self.sampling.repetition_penalty != 1:
      valid = jnp.arange(tokens.shape[1]) < lengths[:, None]
      present = jnp.zeros((tokens.shape[0], self.config.vocab_size), bool)
      present = present.at[jnp.arange(tokens.shape[0])[:, None], tokens].max(valid)
      seen = jnp.repeat(present, rollouts, axis=0)
    state = DecodeState(
      step=jnp.int32(0),
      tokens=jnp.zeros((rows, length), jnp.int32),
      logprobs=jnp.zeros((rows, length), jnp.float32),
      sampling_logprobs=jnp.zeros((rows, length), jnp.float32),
      lengths=jnp.zeros((rows,), jnp.int32),
      done=~active,
      seen=seen,
      cache=empty_cache(self.config, rows, places, self.dtype, self.decode),
    )
    first = jnp.repeat(logits(self.config, weights, filled.hidden), rollouts, axis=0)
    drawn = sample(first, uniforms[0], self.sampling, seen)
    state = self._spread(self._record(state, drawn))
    return state, self._spread_cache(filled.cache), uniforms

  def advance(
    self,
    weights: Params,
    state: DecodeState,
    prompt_lengths: Int[Array, "P"],
    prompt_cache: Cache,
    uniforms: Float[Array, "T_c R 2"],
    until: Int[Array, ""],
    *,
    size: int = 0,
  ) -> DecodeState:
    """Decodes until `until` tokens stand in every row that has not ended, or all have.

    The last of them needs no place in the cache, so `until` is at most one more than its places.
    With a `size`, also until the others fit into blocks of so many rows (see `survivors`).
    """

    def unfinished(state: DecodeState) -> Array:
      ended = jnp.all(state.done)
      if size:
        ended = fits(state.done, prompt_lengths.shape[0], size)
      return (state.step < until) & ~ended

    def grow(state: DecodeState) -> DecodeState:
      last = jax.lax.dynamic_index_in_dim(state.tokens, state.step - 1, axis=1, keepdims=False)
      hidden, cache = decode_step(
        self.config,
        weights,
        last,
        state.step - 1,
        prompt_lengths,
        prompt_cache,
        state.cache,
        self.decode.split(self.rows),
      )
      drawn = sample(
        logits(self.config, weights, hidden), uniforms[state.step], self.sampling, state.seen
      )
      return self._record(state._replace(cache=cache), drawn)

    return jax.lax.while_loop(unfinished, grow, self._spread(state))

  def _spread(self, state: DecodeState) -> DecodeState:
    """The state with its rows, the leading axis of everything but `step`, on their devices."""
    if self.rows is None:
      return state
    place = functools.partial(jax.lax.with_sharding_constraint, shardings=self.rows)
    spread = jax.tree.map(place, state._replace(step=None, cache=()))
    return spread._replace(step=state.step, cache=self._spread_cache(state.cache))

  def _spread_cache(self, cache: Any) -> Any:
    """A cache with its rows on their devices where they divide, and its heads over `tensor`."""
    if self.rows is None:
      return cache
    return jax.lax.with_sharding_constraint(cache, cache_sharding(self.rows, cache[0].key.shape))

  def _record(self, state: DecodeState, drawn: Sample) -> DecodeState:
    """Writes the drawn tokens of rows that go on, and ends those that drew a stop token."""
    going = ~state.done

    def write(table: Array, values: Array) -> Array:
      column = jnp.where(going, values, 0).astype(table.dtype)[:, None]
      return jax.lax.dynamic_update_slice_in_dim(table, column, state.step, axis=1)

    stopped = jnp.zeros_like(state.done)
    for token in self.stop_tokens:
      stopped |= drawn.tokens == token
    seen = state.seen
    if seen is not None:
      seen = seen.at[jnp.arange(seen.shape[0]), drawn.tokens].max(going)
    return state._replace(
      step=state.step + 1,
      tokens=write(state.tokens, drawn.tokens),
      logprobs=write(state.logprobs, drawn.logprobs),
      sampling_logprobs=write(state.sampling_logprobs, drawn.sampling_logprobs),
      lengths=state.lengths + going,
      done=state.done | stopped,
      seen=seen,
    )


@functools.lru_cache(maxsize=64)
def compiled(program: DecodeProgram) -> tuple[Callable, Callable]:
  """The jitted `start` and `advance` of a program; the state of `advance` is donated."""
  start = jax.jit(program.start, static_argnames=("rollouts", "length", "places"))
  advance = jax.jit(program.advance, donate_argnames=("state",), static_argnames=("size",))
  return start, advance


def token_uniforms(
  key: Array, prompt_ids: Int[Array, "P"], rollout_ids: Int[Array, "m"], length: int
) -> Float[Array, "T_c R 2"]:
  """Two uniforms of every token, from `fold_in(key, prompt id, rollout, position)`."""

  def draw(position: Array, prompt: Array, rollout: Array) -> Array:
    token_key = key
    for number in (prompt, rollout, position):
      token_key = jax.random.fold_in(token_key, number)
    return jax.random.uniform(token_key, (2,))

  over_rollouts = jax.vmap(draw, in_axes=(None, None, 0))
  over_prompts = jax.vmap(over_rollouts, in_axes=(None, 0, None))
  over_time = jax.vmap(over_prompts, in_axes=(0, None, None))
  uniforms = over_time(jnp.arange(length), prompt_ids, rollout_ids)
  return uniforms.reshape(length, -1, 2)
