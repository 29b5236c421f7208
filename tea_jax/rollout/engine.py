"""RolloutEngine: prompts in, groups of completions out.

Each prompt is prefilled once and its cache is shared by its group. All rows then decode together in
one compiled `while_loop` that stops as soon as every row has ended. The host looks in between only
if someone asked for it: stop strings, a progress bar or a stream; then the loop runs in segments.

Axes: P prompts, m rollouts of each, R = P m rows, T_p and T_c time.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from tea_jax.models.causal_lm import Params
from tea_jax.models.decode_attention import decode_attention
from tea_jax.models.decode_sharding import copies_weights, decode_weights_on
from tea_jax.models.policy import Policy
from tea_jax.models.sharding import ShardingRules, batch_sharding, parts_of_rows
from tea_jax.rollout.cache import DEFAULT_MEMORY, batch_shape, bucket
from tea_jax.rollout.cache_growth import cache_sizes, with_room
from tea_jax.rollout.decode_batch import decode_to_the_end, fetched
from tea_jax.rollout.decode_loop import DecodeProgram, DecodeState, compiled
from tea_jax.rollout.progress import Progress, report
from tea_jax.rollout.sampling import SamplingConfig
from tea_jax.rollout.stop_strings import StopStrings
from tea_jax.rollout.types import Rollouts
from tea_jax.runtime import processes
from tea_jax.runtime.keys import threefry

_SEGMENT = 16
_SMALLEST_PROMPT = 16
_SMALLEST_COMPLETION = 8
# Weights that only fit split over `fsdp` are gathered for the same rows on all of its devices.
_ROWS_OF_COPIES = ShardingRules(batch="data")


class RolloutEngine:
  """Samples groups of rollouts from a policy.

  A row's tokens depend on its prompt and its key `fold_in(key, prompt id, rollout, position)` only,
  not on its batch mates. Across *different* compiled shapes the logits may differ in their last
  bits, as any matrix product does; a draw changes only if its uniform falls into that gap.

  Attributes:
    policy: what to sample from; its `params` are not used, `generate` takes them.
    sampling: how to sample.
    max_rows: rows decoded at once; None derives it from `memory`.
    memory: bytes for caches and logits of each copy of the model, a bound for `max_rows`.
    segment: tokens between two looks of the host, when stop strings or callbacks need them.
    smallest_prompt: prompts are padded to at least this width; the longest prompt of a data set
      gives all its batches one compiled shape.
    mesh: of the parameters' devices. Those of `data` and, where weights fit on each, of `fsdp`
      decode their shares of the rows where they divide; those of `tensor` share rows.
    interpret: let `decode_attention="pallas"` run without a GPU, slowly: for tests.
  """

  def __init__(
    self,
    policy: Policy,
    sampling: SamplingConfig,
    *,
    max_rows: int | None = None,
    memory: int = DEFAULT_MEMORY,
    segment: int = _SEGMENT,
    smallest_prompt: int = _SMALLEST_PROMPT,
    mesh: jax.sharding.Mesh | None = None,
    interpret: bool = False,
  ):
    config = policy.config
    if max_rows is not None and max_rows < 1:
      raise ValueError(f"max_rows={max_rows} must be at least 1")
    if segment < 1:
      raise ValueError(f"segment={segment} must be at least 1")
    stop_tokens = policy.stop_tokens if sampling.stop_tokens is None else sampling.stop_tokens
    for token in stop_tokens:
      if not 0 <= token < config.vocab_size:
        raise ValueError(
          f"stop token {token} is unknown: the model's ids are 0 to {config.vocab_size - 1}"
        )
    if sampling.stop_strings and policy.tokenizer is None:
      raise ValueError("stop_strings need a tokenizer, but the policy has none")
    self.policy, self.sampling = policy, sampling
    self.stop_tokens = tuple(stop_tokens)
    self.max_rows, self.memory, self.segment = max_rows, memory, segment
    self.smallest_prompt, self.mesh = smallest_prompt, mesh
    self.rows = self._rows_of_copies = None
    self._copies = False
    if mesh is not None:
      copies = copies_weights(config, policy.dtype, mesh.shape["tensor"])
      self._copies = processes.agree(copies)
      self._rows_of_copies = batch_sharding(mesh, _ROWS_OF_COPIES)
      self.rows = batch_sharding(mesh) if self._copies else self._rows_of_copies
    decode = decode_attention(sampling.decode_attention, config, interpret=interpret)
    self._program = DecodeProgram(
      config,
      policy.dtype,
      policy.attention,
      dataclasses.replace(
        sampling,
        stop_strings=(),
        max_completion_length=1,
        compactions=0,
        cache_buckets=1,
        decode_attention="xla",
      ),
      self.stop_tokens,
      decode=decode,
    )

  def generate(
    self,
    params: Params,
    prompts: Sequence[Sequence[int]],
    *,
    key: Array,
    num_rollouts: int,
    prompt_ids: Sequence[int] | None = None,
    progress: Callable[[Progress], None] | None = None,
    on_call: Callable[[slice, slice, Mapping[str, np.ndarray]], None] | None = None,
  ) -> Rollouts:
    """Samples `num_rollouts` completions of every prompt.

    Args:
      params: weights to sample with.
      prompts: token ids of each prompt.
      key: typed PRNG key of this call.
      num_rollouts: m.
      prompt_ids: number of each prompt, folded into its key; its place in the call by default.
      progress: called between segments, as `progress_bar` or a stream; it cannot change the result.
      on_call: called with prompts, rollouts and fields `[prompts, rollouts, ...]` of each of the
        calls that the batch takes, as soon as it has ended.

    Returns:
      `Rollouts` of numpy arrays: T_p and T_c are bucket sizes.

    Raises:
      ValueError: an empty prompt, one that does not fit the model's context, an unknown token.
    """
    self._check(prompts, num_rollouts, prompt_ids)
    key = threefry(key)  # others give a row other numbers in other batches
    ids = np.arange(len(prompts)) if prompt_ids is None else np.asarray(prompt_ids)
    lengths = np.asarray([len(prompt) for prompt in prompts], np.int32)
    prompt_width = self._prompt_bucket(int(lengths.max()))
    completion_width = self.completion_bucket
    prompt_tokens = np.zeros((len(prompts), prompt_width), np.int32)
    for row, prompt in zip(prompt_tokens, prompts, strict=True):
      row[: len(prompt)] = prompt
    shape = (len(prompts), num_rollouts, completion_width)
    result: dict[str, Any] = {
      "prompt_tokens": prompt_tokens,
      "prompt_lengths": lengths,
      "completion_tokens": np.zeros(shape, np.int32),
      "completion_lengths": np.zeros(shape[:2], np.int32),
      "finished": np.zeros(shape[:2], bool),
      "logprobs": np.zeros(shape, np.float32),
      "sampling_logprobs": np.zeros(shape, np.float32),
    }
    params, weights = self.weights(params)
    rows_done = 0
    for prompt_slice, rollout_slice in self._batches(lengths, num_rollouts):
      watch = None
      if progress is not None:
        watch = functools.partial(
          report,
          progress,
          prompts=np.arange(len(prompts))[prompt_slice],
          rollouts=np.arange(num_rollouts)[rollout_slice],
          total_steps=self.sampling.max_completion_length,
          rows_before=rows_done,
          rows_total=len(prompts) * num_rollouts,
        )
      part = self._generate_batch(
        params,
        weights,
        prompt_tokens[prompt_slice],
        lengths[prompt_slice],
        key,
        ids[prompt_slice],
        np.arange(num_rollouts)[rollout_slice],
        watch,
      )
      for name, value in part.items():
        result[name][prompt_slice, rollout_slice] = value
      rows_done += part["finished"].size
      if on_call is not None:
        on_call(prompt_slice, rollout_slice, part)
    return Rollouts(**result)

  def weights(self, params: Params) -> tuple[Params, Params]:
    """What prefills and what decodes: on a mesh both are one copy, in the layout of decoding."""
    if self.mesh is None or not self._copies:
      return params, self.policy.decode_weights(params)
    weights = decode_weights_on(self.policy.config, params, self.policy.dtype, self.mesh)
    return weights, weights

  @property
  def completion_bucket(self) -> int:
    """T_c of the compiled loop and of the result."""
    return bucket(self.sampling.max_completion_length, smallest=_SMALLEST_COMPLETION)

  def _prompt_bucket(self, length: int) -> int:
    return min(bucket(length, smallest=self.smallest_prompt), self.policy.config.max_positions)

  def _check(
    self,
    prompts: Sequence[Sequence[int]],
    num_rollouts: int,
    prompt_ids: Sequence[int] | None,
  ) -> None:
    config, limit = self.policy.config, self.sampling.max_completion_length
    if not len(prompts):
      raise ValueError("prompts is empty; give at least one prompt")
    if num_rollouts < 1:
      raise ValueError(f"num_rollouts={num_rollouts} must be at least 1")
    if prompt_ids is not None and len(prompt_ids) != len(prompts):
      raise ValueError(f"{len(prompt_ids)} prompt_ids for {len(prompts)} prompts")
    for index, prompt in enumerate(prompts):
      if not len(prompt):
        raise ValueError(f"prompt {index} is empty; it needs at least one token, such as bos")
      if len(prompt) + limit > config.max_positions:
        raise ValueError(
          f"prompt {index} has {len(prompt)} tokens, which with max_completion_length={limit}"
          f" exceeds the model's context of {config.max_positions}; shorten one of them"
        )
      if min(prompt) < 0 or max(prompt) >= config.vocab_size:
        raise ValueError(
          f"prompt {index} holds a token outside 0 to {config.vocab_size - 1}:"
          f" {min(prompt) if min(prompt) < 0 else max(prompt)}"
        )

  def _batches(self, lengths: np.ndarray, num_rollouts: int) -> list[tuple[slice, slice]]:
    """(prompts, rollouts) slices that fit: whole groups together, a large group in equal parts."""
    height, width = batch_shape(
      self.policy.config,
      num_rollouts,
      prompt_length=self._prompt_bucket(int(lengths.max())),
      completion_length=self.completion_bucket,
      item_size=self.policy.dtype.itemsize,
      # Devices decode their shares of the rows in their own memory.
      memory=self.memory * parts_of_rows(self.rows),
      max_rows=self.max_rows,
    )
    return [
      (slice(top, top + height), slice(left, left + width))
      for top in range(0, len(lengths), height)
      for left in range(0, num_rollouts, width)
    ]

  def _compiled(self, rows: int) -> tuple[Callable, Callable]:
    """Of the decode program for so many rows."""
    divides = (
      each for each in (self.rows, self._rows_of_copies) if rows % parts_of_rows(each) == 0
    )
    return compiled(dataclasses.replace(self._program, rows=next(divides, None)))

  def _generate_batch(
    self,
    params: Params,
    weights: Params,
    tokens: np.ndarray,
    lengths: np.ndarray,
    key: Array,
    prompt_ids: np.ndarray,
    rollout_ids: np.ndarray,
    watch: Callable[[DecodeState, int], None] | None,
  ) -> dict[str, np.ndarray]:
    prompts, rollouts = len(tokens), len(rollout_ids)
    padding = bucket(prompts) - prompts
    # Padding prompts repeat the last one; their rows are done from the start.
    tokens, lengths, ids = (
      np.concatenate([value, np.repeat(value[-1:], padding, axis=0)])
      for value in (tokens, lengths, prompt_ids.astype(np.int32))
    )
    active = np.repeat(np.arange(len(tokens)) < prompts, rollouts)
    width = self._prompt_bucket(int(lengths.max()))
    start, advance = self._compiled(len(active))
    limit = self.sampling.max_completion_length
    places = cache_sizes(
      self.completion_bucket, self.sampling.cache_buckets, self._program.decode.multiple
    )
    state, cache, uniforms = start(
      params,
      weights,
      tokens[:, :width],
      lengths,
      key,
      ids,
      rollout_ids.astype(np.int32),
      active,
      rollouts=rollouts,
      length=self.completion_bucket,
      places=places[0],
    )

    def split(value: np.ndarray) -> np.ndarray:
      return value.reshape(-1, rollouts, *value.shape[1:])[:prompts]

    stopper = StopStrings(self.policy.tokenizer, self.sampling.stop_strings)
    if not stopper and watch is None:
      kept = decode_to_the_end(
        lambda rows: self._compiled(rows)[1],
        weights,
        state,
        lengths,
        cache,
        uniforms,
        limit=limit,
        places=places,
        compactions=self.sampling.compactions,
      )
      return {name: split(value) for name, value in kept.items()}
    step = 1
    while True:
      if stopper:
        state = stopper.apply(state, step)
      if watch is not None:
        watch(state, step)
      if step >= limit or bool(np.all(processes.fetch(state.done))):
        return {name: split(value) for name, value in fetched(state).items()}
      state, room = with_room(state, step, places)
      until = min(step + self.segment, limit, room)
      state = advance(weights, state, lengths, cache, uniforms, np.int32(until))
      step = until
