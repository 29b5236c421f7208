"""Stop strings: texts that end a completion, found on the host between decode segments."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from tea_jax.rollout.decode_loop import DecodeState
from tea_jax.runtime import processes


class StopStrings:
  """Ends rows whose text holds a stop string; checked on the host between segments.

  Tokens decoded past the string are thrown away, so the result does not depend on the segment.
  """

  def __init__(self, tokenizer, strings: Sequence[str]):
    self._tokenizer, self._strings = tokenizer, tuple(strings)

  def __bool__(self) -> bool:
    return bool(self._strings)

  def apply(self, state: DecodeState, step: int) -> DecodeState:
    """`state` with rows cut after the token that completes a stop string."""
    tokens, lengths = processes.fetch(state.tokens), processes.fetch(state.lengths).copy()
    done, ends = processes.fetch(state.done).copy(), np.full_like(lengths, np.iinfo(np.int32).max)
    # A row that ended by a stop token in this segment may hold the string before that token.
    for row in np.flatnonzero(~done | (lengths > 0)):
      length = self._first_end(tokens[row, : lengths[row]])
      if length is not None:
        lengths[row], done[row], ends[row] = length, True, length
    if not np.any(ends < tokens.shape[1]):
      return state
    kept = np.arange(tokens.shape[1]) < ends[:, None]
    return state._replace(
      tokens=jnp.where(kept, state.tokens, 0),
      logprobs=jnp.where(kept, state.logprobs, 0),
      sampling_logprobs=jnp.where(kept, state.sampling_logprobs, 0),
      lengths=jnp.asarray(lengths),
      done=jnp.asarray(done),
    )

  def _first_end(self, tokens: np.ndarray) -> int | None:
    """Number of tokens up to the one that completes a stop string, or None."""
    if not self._found(tokens):
      return None
    low, high = 1, len(tokens)
    while low < high:
      middle = (low + high) // 2
      if self._found(tokens[:middle]):
        high = middle
      else:
        low = middle + 1
    return high

  def _found(self, tokens: np.ndarray) -> bool:
    text = self._tokenizer.decode(tokens.tolist(), skip_special_tokens=False)
    return any(string in text for string in self._strings)
