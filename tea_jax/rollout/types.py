"""Rollouts: what the sampler returns and the trainer consumes.

Axes: P prompts, m rollouts of each (`num_rollouts`), T_p prompt and T_c completion tokens.
"""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Array, Bool, Float, Int


class Rollouts(NamedTuple):
  """Groups of completions, left-aligned: masks come from the lengths, never from token ids.

  Attributes:
    prompt_tokens: `[P, T_p]`, padded to the right.
    prompt_lengths: `[P]`.
    completion_tokens: `[P, m, T_c]`, padded to the right; the end token, if sampled, is included.
    completion_lengths: `[P, m]`, the end token counted.
    finished: `[P, m]`, False where the completion was cut at the maximum length.
    logprobs: `[P, m, T_c]` log-probability of each sampled token under the full vocabulary at the
      sampling temperature, float32: what the trainer recomputes. 0 on padding.
    sampling_logprobs: `[P, m, T_c]` the same under the distribution that was sampled (after top-k,
      top-p, min-p, penalties). 0 on padding.
  """

  prompt_tokens: Int[Array, "P T_p"]
  prompt_lengths: Int[Array, "P"]
  completion_tokens: Int[Array, "P m T_c"]
  completion_lengths: Int[Array, "P m"]
  finished: Bool[Array, "P m"]
  logprobs: Float[Array, "P m T_c"]
  sampling_logprobs: Float[Array, "P m T_c"]
