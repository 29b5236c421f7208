"""Kullback-Leibler divergence to the reference policy: estimates, and losses with its gradient.

An expectation under the policy depends on the policy twice: through the estimate, and through who
was sampled. A loss that differentiates only the first follows another objective; `kl_penalty` adds
the second. Axes: P prompts, m rollouts of each, T completion tokens.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from tea_jax.runs.objective import KLEstimator, KLGradient
from tea_jax.training.ratios import MAX_LOG_RATIO, completion_mask, log_ratio


def kl_estimate(
  logprobs: Float[Array, "P m T"],
  reference_logprobs: Float[Array, "P m T"],
  mask: Bool[Array, "P m T"],
  *,
  estimator: KLEstimator = "k3",
) -> Float[Array, "P m T"]:
  """Estimate of KL(policy || reference) at each token from its sampled token; 0 on padding.

  With d = log ref - log policy: k1 = -d, k2 = d^2 / 2, k3 = exp(d) - 1 - d. The exponent stops at
  d = 20: a larger one is a token that the policy hardly ever samples.
  """
  chex.assert_equal_shape([logprobs, reference_logprobs])
  d = jnp.where(mask, reference_logprobs - logprobs, 0.0)
  if estimator == "k1":
    return -d
  if estimator == "k2":
    return 0.5 * jnp.square(d)
  if estimator == "k3":
    return jnp.expm1(jnp.minimum(d, MAX_LOG_RATIO)) - d
  raise ValueError(f'kl_estimator="{estimator}" is unknown; use k1, k2 or k3.')


def kl_penalty(
  logprobs: Float[Array, "P m T"],
  reference_logprobs: Float[Array, "P m T"],
  mask: Bool[Array, "P m T"],
  *,
  estimator: KLEstimator = "k3",
  gradient: KLGradient = "token",
  old_logprobs: Float[Array, "P m T"] | None = None,
) -> Float[Array, "P m T"]:
  """Token terms whose expected gradient is that of the KL, to be added to the loss.

  An expectation under the policy depends on the policy twice: in the estimate, and in the samples.
  The second part is a factor `ratio`, one in value and differentiable:

    token        rho_t k_t          (k2: d^2 / 2 alone has the right gradient already)
    trajectory   (prod_{s <= t} rho_s) k_t
    estimator    k_t

  For k3, grad(rho k3) = -d grad log p: the same as k2's, whatever the reference; on fresh samples
  it is computed as k2's, in which no large terms cancel.
  """
  reference_logprobs = jax.lax.stop_gradient(reference_logprobs)
  estimate = kl_estimate(logprobs, reference_logprobs, mask, estimator=estimator)
  if estimator == "k3" and gradient == "token" and old_logprobs is None:
    slope = kl_estimate(logprobs, reference_logprobs, mask, estimator="k2")
    return jax.lax.stop_gradient(estimate - slope) + slope
  ratio = log_ratio(logprobs, old_logprobs, mask)
  if gradient == "estimator" or (estimator == "k2" and old_logprobs is None):
    return estimate
  if estimator == "k2":
    return jax.lax.stop_gradient(jnp.exp(ratio)) * estimate
  if gradient == "trajectory":
    ratio = jnp.clip(jnp.cumsum(ratio, axis=-1), -MAX_LOG_RATIO, MAX_LOG_RATIO)
  return jnp.exp(ratio) * estimate


def kl_in_reward(
  rewards: Float[Array, "P m"],
  logprobs: Float[Array | np.ndarray, "P m T"],
  reference_logprobs: Float[Array, "P m T"],
  lengths: Int[Array | np.ndarray, "P m"],
  *,
  kl_coefficient: Float[Array, ""] | float,
) -> Float[Array, "P m"]:
  """r - beta sum_t (log policy - log reference): its policy gradient is that of r - beta KL."""
  logprobs, lengths = jnp.asarray(logprobs), jnp.asarray(lengths)
  chex.assert_equal_shape_prefix([rewards, logprobs, reference_logprobs], 2)
  mask = completion_mask(lengths, logprobs.shape[-1])
  return rewards - kl_coefficient * kl_estimate(
    logprobs, reference_logprobs, mask, estimator="k1"
  ).sum(-1)
