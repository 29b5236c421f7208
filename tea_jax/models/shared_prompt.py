"""Forward pass of groups of rollouts that computes each shared prompt once.

Prompt and completion tokens of a group stand in one row for every matrix product; only attention
tells them apart. Completions attend to their prompt's keys and to their own past, and
gradients flow into the prompt through both. With m rollouts, a prompt costs 1/m of what repeating
it would.

Axes: P prompts, m rollouts of each, T_p and T_c time, D model.
"""

from __future__ import annotations

from typing import Any

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tea_jax.models import causal_lm
from tea_jax.models.attention import (
  AttentionKind,
  causal_attention,
  segment_attention,
)
from tea_jax.models.causal_lm import Params, Remat
from tea_jax.models.config import ModelConfig
from tea_jax.models.fused_attention import fused_segment_attention
from tea_jax.models.layers import normalize
from tea_jax.models.visibility import visible_keys


def group_hidden_states(
  config: ModelConfig,
  params: Params,
  prompt_tokens: Int[Array, "P T_p"],
  prompt_lengths: Int[Array, "P"],
  completion_tokens: Int[Array, "P m T_c"],
  *,
  dtype: Any = jnp.float32,
  scan: bool = True,
  remat: Remat = "none",
  attention: AttentionKind = "auto",
  mesh: jax.sharding.Mesh | None = None,
) -> Float[Array, "P m T_c D"]:
  """Final hidden states that predict each completion token.

  Args:
    config, params: the model.
    prompt_tokens, completion_tokens: left-aligned, padded to the right.
    prompt_lengths: `[P]`.
    dtype, scan, remat, attention: see `causal_lm.hidden_states`.
    mesh: see `causal_lm.run_layers`.

  Returns:
    `[P, m, T_c, D]`: at index 0 the state of the prompt's last token, at t that of completion token
    t - 1.
  """
  chex.assert_rank([prompt_tokens, prompt_lengths, completion_tokens], [2, 1, 3])
  prompts, prompt_width = prompt_tokens.shape
  # The last completion token predicts nothing that is asked for.
  inputs = completion_tokens[:, :, :-1]
  _, rollouts, width = inputs.shape
  prompt_positions = jnp.broadcast_to(jnp.arange(prompt_width), prompt_tokens.shape)
  positions = prompt_lengths[:, None] + jnp.arange(width)
  window = config.sliding_window
  visible_prompt = visible_keys(positions, prompt_positions, window)
  visible_prompt &= (prompt_positions < prompt_lengths[:, None])[:, None]
  visible_prompt = jnp.repeat(visible_prompt, rollouts, axis=0)
  visible_own = visible_keys(jnp.arange(width), jnp.arange(width), window)[None]
  # On one device all groups are one list: plain products of two matrices.
  axes = 1 if mesh is None else 2

  def split(x: Array) -> tuple[Array, Array]:
    x = x.reshape(prompts, -1, *x.shape[axes:])
    own = x[:, prompt_width:].reshape(prompts * rollouts, width, *x.shape[2:])
    return x[:, :prompt_width], own

  def attend(query: Array, key: Array, value: Array) -> tuple[Array, None]:
    (q_prompt, q), (k_prompt, k), (v_prompt, v) = map(split, (query, key, value))
    attended_prompt = causal_attention(
      q_prompt,
      k_prompt,
      v_prompt,
      lengths=prompt_lengths,
      sliding_window=window,
      kind=attention,
    )
    attended = [attended_prompt]
    if width:
      if attention == "fused":
        own = fused_segment_attention(
          q, (k, v), (k_prompt, v_prompt), prompt_lengths, sliding_window=window
        )
      else:
        own = segment_attention(q, [(k_prompt, v_prompt, visible_prompt), (k, v, visible_own)])
      attended.append(own.reshape(prompts, rollouts * width, *own.shape[2:]))
    return jnp.concatenate(attended, axis=1).reshape(query.shape), None

  tokens = jnp.concatenate([prompt_tokens, inputs.reshape(prompts, -1)], axis=1)
  all_positions = jnp.concatenate([prompt_positions, jnp.tile(positions, (1, rollouts))], axis=1)
  if mesh is None:
    tokens, all_positions = tokens.reshape(-1), all_positions.reshape(-1)
  x = causal_lm.embed_tokens(config, params, tokens, all_positions, dtype)
  x, _ = causal_lm.run_layers(
    config, params["layers"], x, all_positions, attend, scan=scan, remat=remat, mesh=mesh
  )
  first, rest = split(x)
  last = jnp.take_along_axis(first, (prompt_lengths - 1)[:, None, None], axis=1)
  last = jnp.broadcast_to(last[:, None], (prompts, rollouts, 1, last.shape[-1]))
  states = jnp.concatenate([last, rest.reshape(prompts, rollouts, width, -1)], axis=2)
  return normalize(states, params["final_norm"], config)
