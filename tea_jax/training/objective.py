"""The loss of a batch of groups: per-sequence policy gradient, KL to a reference, PPO clipping.

Everything here is a function of log-probabilities that somebody else computed. A loss is a sum
over tokens of `weight * term`; the weights come from the lengths of the whole batch
(`token_weights`), so the losses and gradients of micro-batches simply add up.

Axes: P prompts, m rollouts of each, T completion tokens.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tea_jax.runs.objective import Aggregation, ObjectiveConfig
from tea_jax.training.kl import kl_penalty
from tea_jax.training.ratios import completion_mask, importance_ratios, sampler_correction


def token_weights(
  lengths: Int[Array, "P m"],
  num_tokens: int,
  *,
  aggregation: Aggregation = "token_sum",
  max_completion_length: int | None = None,
  where: Bool[Array, "P m"] | None = None,
) -> Float[Array, "P m T"]:
  """Weight of each token in the loss, from the lengths of the whole batch.

  With n rollouts that count, lengths l_i and the constant L = max_completion_length:

    token_sum        1 / n
    constant_length  1 / (n L)
    token_mean       1 / sum_i l_i
    sequence_mean    1 / (n l_i)

  and 0 on padding and on rollouts where `where` is False; the divisors count the same rollouts.

  Args:
    lengths: `[P, m]` tokens of each completion.
    num_tokens: T, the padded length.
    aggregation: see `ObjectiveConfig`.
    max_completion_length: L; needed by constant_length.
    where: `[P, m]`, which rollouts count; None for all.

  Returns:
    `[P, m, T]` float32.

  Raises:
    ValueError: for an unknown aggregation, or constant_length without its constant.
  """
  chex.assert_rank(lengths, 2)
  mask = completion_mask(lengths, num_tokens)
  counted = jnp.ones(lengths.shape, bool) if where is None else where
  chex.assert_equal_shape([lengths, counted])
  mask = (mask & counted[..., None]).astype(jnp.float32)
  num_counted = jnp.maximum(counted.sum(), 1).astype(jnp.float32)
  if aggregation == "token_sum":
    return mask / num_counted
  if aggregation == "constant_length":
    if not max_completion_length:
      raise ValueError('aggregation="constant_length" needs max_completion_length.')
    return mask / (num_counted * max_completion_length)
  if aggregation == "token_mean":
    return mask / jnp.maximum(mask.sum(), 1.0)
  if aggregation == "sequence_mean":
    return mask / (num_counted * jnp.maximum(lengths, 1)[..., None])
  raise ValueError(
    f'aggregation="{aggregation}" is unknown; use token_sum, constant_length, token_mean or '
    "sequence_mean."
  )


def clipped_surrogate(
  ratios: Float[Array, "P m T"],
  advantages: Float[Array, "P m"],
  *,
  clip_epsilon_low: float | None = None,
  clip_epsilon_high: float | None = None,
) -> Float[Array, "P m T"]:
  """min(rho A, clip(rho, 1 - low, 1 + high) A), to be maximised.

  Source: arXiv 1707.06347, eq. 7; separate bounds as in arXiv 2503.14476.
  """
  chex.assert_equal_shape_prefix([ratios, advantages], 2)
  advantages = jax.lax.stop_gradient(advantages)[..., None]
  if clip_epsilon_low is None and clip_epsilon_high is None:
    return ratios * advantages
  low = 0.0 if clip_epsilon_low is None else 1.0 - clip_epsilon_low
  high = jnp.inf if clip_epsilon_high is None else 1.0 + clip_epsilon_high
  return jnp.minimum(ratios * advantages, jnp.clip(ratios, low, high) * advantages)


def policy_loss(
  logprobs: Float[Array, "P m T"],
  advantages: Float[Array, "P m"],
  weights: Float[Array, "P m T"],
  *,
  config: ObjectiveConfig,
  old_logprobs: Float[Array, "P m T"] | None = None,
  sampler_logprobs: Float[Array, "P m T"] | None = None,
  reference_logprobs: Float[Array, "P m T"] | None = None,
  entropy: Float[Array, "P m T"] | None = None,
  kl_coefficient: Float[Array, ""] | float | None = None,
) -> Float[Array, ""]:
  """loss = -sum weight (surrogate + c_H entropy - beta KL), advantages and references constant.

  Args:
    logprobs: `[P, m, T]` of the sampled tokens under the policy, differentiable.
    advantages: `[P, m]`; any per-rollout weight (CAT's) is already multiplied in, after the
      normalisation, so it scales neither KL nor entropy.
    weights: `[P, m, T]` from `token_weights` of the whole batch; 0 marks what does not count.
    config: which terms, see `ObjectiveConfig`.
    old_logprobs: `[P, m, T]` under the policy before the first update on this batch; None during
      that first update, where every ratio is 1.
    sampler_logprobs: `[P, m, T]` as the sampler computed them; for `importance_cap`.
    reference_logprobs: `[P, m, T]`; for a KL in the loss.
    entropy: `[P, m, T]` of the policy at each position, differentiable; for the entropy bonus.
    kl_coefficient: overrides the config's value, so that one compiled step serves several.

  Returns:
    Scalar; sums over micro-batches of one batch.
  """
  chex.assert_rank([logprobs, advantages, weights], [3, 2, 3])
  chex.assert_equal_shape([logprobs, weights])
  mask = weights > 0
  ratios = importance_ratios(logprobs, old_logprobs, mask, level=config.importance_ratio)
  terms = clipped_surrogate(
    ratios,
    advantages,
    clip_epsilon_low=config.clip_epsilon_low,
    clip_epsilon_high=config.clip_epsilon_high,
  )
  if config.importance_cap is not None:
    if sampler_logprobs is None:
      raise ValueError(f"importance_cap={config.importance_cap} needs sampler_logprobs.")
    trainer = logprobs if old_logprobs is None else old_logprobs
    terms = terms * sampler_correction(trainer, sampler_logprobs, mask, cap=config.importance_cap)
  if config.entropy_coefficient:
    if entropy is None:
      raise ValueError(f"entropy_coefficient={config.entropy_coefficient} needs entropy.")
    terms = terms + config.entropy_coefficient * jnp.where(mask, entropy, 0.0)
  if config.kl_coefficient > 0 and config.kl_placement == "loss":
    if reference_logprobs is None:
      raise ValueError(f"kl_coefficient={config.kl_coefficient} needs reference_logprobs.")
    penalty = kl_penalty(
      logprobs,
      reference_logprobs,
      mask,
      estimator=config.kl_estimator,
      gradient=config.kl_gradient,
      old_logprobs=old_logprobs,
    )
    beta = config.kl_coefficient if kl_coefficient is None else kl_coefficient
    terms = terms - beta * penalty
  # where, not only a product: a non-finite padding value must not reach the sum.
  return -jnp.sum(jnp.where(mask, weights * terms, 0.0))
