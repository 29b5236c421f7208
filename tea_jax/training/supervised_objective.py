"""Supervised losses of (prompt, completion) pairs: cross-entropy and compute-aligned ones.

The losses of a test-time strategy are -log S(p) of the completion's probability p, differentiated
as they stand. A batch's loss is a sum over pairs of `weight * loss`, with the weights of the whole
batch, so micro-batches add up.

Axes: B pairs, T tokens of prompt, completion and padding.
"""

from __future__ import annotations

from typing import NamedTuple

import chex
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tea_jax.runs.supervised import SupervisedObjectiveConfig


class TokenScores(NamedTuple):
  """What the model says of each token; 0 on prompts and padding.

  Attributes:
    logprobs, margin, pairwise: `[B, T]`, see `models.rivals.GoldTokens`; the last two are None
      where the loss does not need them.
  """

  logprobs: Float[Array, "B T"]
  margin: Float[Array, "B T"] | None = None
  pairwise: Float[Array, "B T"] | None = None


def pair_weights(num_tokens: Int[Array, "B"], *, aggregation: str) -> Float[Array, "B"]:
  """Weight of each pair's loss, from the completions' lengths of the whole batch.

  token_sum 1 / B, sequence_mean 1 / (B l_i), token_mean 1 / sum_i l_i; 0 for rows without tokens,
  which fill up a batch and are not counted in B.
  """
  chex.assert_rank(num_tokens, 1)
  counted = num_tokens > 0
  pairs = jnp.maximum(counted.sum(), 1).astype(jnp.float32)
  if aggregation == "token_sum":
    weights = jnp.full(num_tokens.shape, 1 / pairs)
  elif aggregation == "sequence_mean":
    weights = 1 / (pairs * jnp.maximum(num_tokens, 1))
  elif aggregation == "token_mean":
    weights = jnp.full(num_tokens.shape, 1 / jnp.maximum(num_tokens.sum(), 1))
  else:
    raise ValueError(
      f'aggregation="{aggregation}" is unknown; use token_sum, sequence_mean or token_mean.'
    )
  return jnp.where(counted, weights, 0.0).astype(jnp.float32)


def pair_losses(
  scores: TokenScores,
  mask: Bool[Array, "B T"],
  config: SupervisedObjectiveConfig,
) -> Float[Array, "B"]:
  """Loss of each pair, summed over its tokens or of the whole completion.

  Args:
    scores: of the tokens, differentiable.
    mask: `[B, T]`, True for completion tokens.
    config: which loss.

  Source: arXiv 2604.24957, eqs. 92, 94, 95 and 24 to 27.
  """
  log_p = scores.logprobs.sum(-1)
  if config.name == "cross_entropy":
    return -log_p
  if config.name in ("pass_at_n", "majority"):
    return config.strategy.loss(log_p)
  if config.name == "token_margin":
    assert scores.margin is not None
    hinge = jnp.where(mask, jnp.maximum(config.margin - scores.margin, 0.0), 0.0)
    return -log_p + hinge.sum(-1)
  assert scores.pairwise is not None
  compared = scores.pairwise.sum(-1)
  if config.name == "pairwise":
    return compared
  return config.pairwise_weight * compared - (1 - config.pairwise_weight) * log_p
