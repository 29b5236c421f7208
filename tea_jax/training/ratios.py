"""Masks and probability ratios of sampled tokens: between policies, and trainer to sampler.

Axes: P prompts, m rollouts of each, T completion tokens.
"""

from __future__ import annotations

from typing import Literal

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# A larger log-ratio says nothing but "out of range"; exp of it gives inf * 0 = NaN in gradients.
MAX_LOG_RATIO = 20.0


def completion_mask(lengths: Int[Array, "P m"], num_tokens: int) -> Bool[Array, "P m T"]:
  """True on the tokens of each completion: position < length."""
  chex.assert_rank(lengths, 2)
  return jnp.arange(num_tokens) < lengths[..., None]


def log_ratio(
  logprobs: Float[Array, "P m T"],
  old_logprobs: Float[Array, "P m T"] | None,
  mask: Bool[Array, "P m T"],
) -> Float[Array, "P m T"]:
  """log policy - log old policy of each token; 0 on padding, within +-20.

  Without `old_logprobs` the policy is its own past: value 0, gradient that of `logprobs`.
  """
  old = jax.lax.stop_gradient(logprobs if old_logprobs is None else old_logprobs)
  return jnp.where(mask, jnp.clip(logprobs - old, -MAX_LOG_RATIO, MAX_LOG_RATIO), 0.0)


def importance_ratios(
  logprobs: Float[Array, "P m T"],
  old_logprobs: Float[Array, "P m T"] | None,
  mask: Bool[Array, "P m T"],
  *,
  level: Literal["token", "sequence"] = "token",
) -> Float[Array, "P m T"]:
  """Ratio policy / old policy that multiplies each token's advantage.

  token: rho_t = p_t / p_old_t. sequence: the value is prod_t rho_t on every token, and the gradient
  of token t is that value times grad log p_t, so the sum over tokens has the gradient of the whole
  completion's ratio (Source: the token form of GSPO, arXiv 2507.18071, without its length root).
  """
  ratio = log_ratio(logprobs, old_logprobs, mask)
  if level == "token":
    return jnp.exp(ratio)
  total = jnp.clip(ratio.sum(-1, keepdims=True), -MAX_LOG_RATIO, MAX_LOG_RATIO)
  own = jnp.where(mask, logprobs - jax.lax.stop_gradient(logprobs), 0.0)
  return jnp.exp(jax.lax.stop_gradient(total) + own)


def sampler_correction(
  trainer_logprobs: Float[Array, "P m T"],
  sampler_logprobs: Float[Array, "P m T"],
  mask: Bool[Array, "P m T"],
  *,
  cap: float,
) -> Float[Array, "P m T"]:
  """min(trainer / sampler probability, cap), a constant; 1 on padding."""
  trainer_logprobs = jax.lax.stop_gradient(trainer_logprobs)
  ratio = jnp.exp(jax.lax.stop_gradient(log_ratio(trainer_logprobs, sampler_logprobs, mask)))
  return jnp.minimum(ratio, cap)
