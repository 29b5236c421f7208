"""All tokens of one batch where nobody looks in between: one compiled loop, or one for each size.

Axes: P prompts, m rollouts of each, R = P m rows, T_c completion time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, Float

from tea_jax.models.causal_lm import Params
from tea_jax.models.decoding import Cache
from tea_jax.rollout.cache_growth import with_room
from tea_jax.rollout.decode_loop import DecodeState
from tea_jax.rollout.survivors import moved, plan_move
from tea_jax.runtime import processes


def decode_to_the_end(
  advance_of: Callable[[int], Callable[..., DecodeState]],
  weights: Params,
  state: DecodeState,
  prompt_lengths: Any,
  prompt_cache: Cache,
  uniforms: Float[Array, "T_c R 2"],
  *,
  limit: int,
  places: Sequence[int],
  compactions: int,
) -> dict[str, np.ndarray]:
  """What `fetched` gives of the rows when all have ended.

  Args:
    advance_of: the compiled `DecodeProgram.advance` of so many rows.
    weights, prompt_lengths, prompt_cache, uniforms: its arguments.
    state: after the first token.
    limit: tokens after which a completion is cut.
    places: of the completions' caches, one size after the other.
    compactions: times that the survivors may move into half the places, see `survivors`.
  """
  blocks = len(prompt_lengths)
  result: dict[str, np.ndarray] = {}
  origin = np.arange(len(state.done))  # the row that each one was at first, -1 for none

  def keep(state: DecodeState) -> dict[str, np.ndarray]:
    for name, value in fetched(state).items():
      result.setdefault(name, value)[origin[origin >= 0]] = value[origin >= 0]
    return result

  while (step := int(state.step)) < limit and not np.all(done := processes.fetch(state.done)):
    half = -(-len(origin) // blocks // 2)
    size = half if compactions and blocks * half < len(origin) else 0
    move = plan_move(done, blocks, size) if size else None
    if move is not None:
      keep(state)
      state, prompt_lengths, prompt_cache, uniforms = moved(
        state, prompt_lengths, prompt_cache, uniforms, move
      )
      origin, compactions = np.where(move.kept, origin[move.rows], -1), compactions - 1
      continue
    state, room = with_room(state, step, places)
    until = np.int32(min(limit, room))
    state = advance_of(len(origin))(
      weights, state, prompt_lengths, prompt_cache, uniforms, until, size=size
    )
  return keep(state)


def fetched(state: DecodeState) -> dict[str, np.ndarray]:
  """What of a state belongs to `Rollouts`, by its name there, on the host."""
  kept = {
    "completion_tokens": state.tokens,
    "completion_lengths": state.lengths,
    "finished": state.done,
    "logprobs": state.logprobs,
    "sampling_logprobs": state.sampling_logprobs,
  }
  # Copies: on a CPU the state's own memory is given to the next call.
  return {name: np.array(processes.fetch(value)) for name, value in kept.items()}
