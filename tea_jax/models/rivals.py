"""The gold token against its rivals: margins and sampled comparisons of logits, token by token.

Logits are made in chunks and made again in the backward pass, so `[B, T, V]` never exists.

Axes: B rows, T time, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tea_jax.models.causal_lm import Params
from tea_jax.models.fused_head import default_chunk
from tea_jax.models.policy import Policy


class GoldTokens(NamedTuple):
  """How each completion token fares against the others; 0 where there is none.

  Attributes:
    logprobs: `[B, T]` log-probability of the token.
    margin: `[B, T]` its logit minus the largest other one.
    pairwise: `[B, T]` -mean_r log sigmoid(its logit - that of rival r); 0 without rivals.
  """

  logprobs: Float[Array, "B T"]
  margin: Float[Array, "B T"]
  pairwise: Float[Array, "B T"]


def gold_tokens(
  policy: Policy,
  params: Params,
  tokens: Int[Array, "B T"],
  prompt_lengths: Int[Array, "B"],
  lengths: Int[Array, "B"],
  *,
  keys: Array | None = None,
  num_rivals: int = 0,
  chunk: int | None = None,
) -> GoldTokens:
  """Compares each completion token with its rivals, at the place of the token.

  Rivals are drawn with replacement from the softmax without the gold token; which ones they are is
  a constant of the gradient, their logits are not.

  Args:
    policy: the model; its own `params` are not used.
    params: differentiable weights.
    tokens: `[B, T]` rows of prompt, completion, padding.
    prompt_lengths: `[B]`; tokens from here on are compared.
    lengths: `[B]` of prompt and completion together.
    keys: `[B]` PRNG keys, one a row, folded with the position: padding and micro-batches change
      nothing. Needed with rivals.
    num_rivals: R.
    chunk: tokens that go through the head at a time; by default about 128 MiB of logits.

  Raises:
    ValueError: if there are rivals to draw but no keys.

  Source: arXiv 2604.24957, eqs. 24 to 27.
  """
  if num_rivals and keys is None:
    raise ValueError(f"num_rivals={num_rivals} needs keys, one a row")
  chex.assert_rank([tokens, prompt_lengths, lengths], [2, 1, 1])
  rows, width = tokens.shape
  hidden = policy.hidden_states(params, tokens, lengths)[:, :-1]
  targets = tokens[:, 1:]
  places = jnp.arange(1, width)
  valid = (places >= prompt_lengths[:, None]) & (places < lengths[:, None])
  if keys is None:
    keys = jax.random.split(jax.random.key(0), rows)
  token_keys = jax.vmap(lambda key: jax.vmap(lambda t: jax.random.fold_in(key, t))(places))(keys)
  count = targets.size
  chunk = min(chunk or default_chunk(count, policy.config.vocab_size), count)

  def compare(part):
    states, gold, part_keys = part
    logits = policy.logits(params, states)
    own = jnp.take_along_axis(logits, gold[:, None], axis=-1)[:, 0]
    is_gold = jnp.arange(logits.shape[-1]) == gold[:, None]
    others = jnp.where(is_gold, -jnp.inf, logits)
    pairwise = jnp.zeros_like(own)
    if num_rivals:
      drawn = jax.vmap(lambda key, row: jax.random.categorical(key, row, shape=(num_rivals,)))(
        part_keys, jax.lax.stop_gradient(others)
      )
      against = jnp.take_along_axis(logits, drawn, axis=-1)
      pairwise = -jax.nn.log_sigmoid(own[:, None] - against).mean(-1)
    return GoldTokens(
      own - jax.nn.logsumexp(logits, axis=-1), own - jnp.max(others, axis=-1), pairwise
    )

  compared = jax.lax.map(
    jax.checkpoint(compare),
    jax.tree.map(
      lambda leaf: _chunks(leaf, chunk),
      (hidden.reshape(count, -1), targets.reshape(-1), token_keys.reshape(-1)),
    ),
  )

  def restore(leaf: Array) -> Array:
    leaf = jnp.where(valid, leaf.reshape(-1)[:count].reshape(rows, width - 1), 0.0)
    return jnp.pad(leaf, ((0, 0), (1, 0)))  # nothing predicts the first token of a row

  return jax.tree.map(restore, compared)


def _chunks(leaf: Array, chunk: int) -> Array:
  count = leaf.shape[0]
  missing = -count % chunk
  if missing:
    leaf = jnp.concatenate([leaf, jnp.repeat(leaf[-1:], missing, axis=0)])
  return leaf.reshape(-1, chunk, *leaf.shape[1:])
