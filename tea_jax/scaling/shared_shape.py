"""A law for many prompts: their rewards differ in location and scale, and share a tail."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Real

from tea_jax.scaling.laws import Coefficient, Law, predict_best_of_n
from tea_jax.tail.statistics import as_rewards


def predict_with_shared_shape(
  rewards: Real[ArrayLike, "*batch P num_rollouts"],
  budgets: Sequence[int],
  *,
  law: Law = "gaussian_tail",
  tail_fraction: float = 0.2,
  coefficient: Coefficient = "expected_maximum",
) -> Float[Array, "*batch P num_budgets"]:
  """Best-of-N of each prompt, from its mean and deviation and the tail of all prompts together.

  mean_p + sd_p h_N,   h_N = `predict_best_of_n` of all standardised rewards (r - mean_p) / sd_p

  A prompt's own tail has a fifth of its few rewards; its mean and deviation use them all. On
  Gaussian rewards the error at m = 50, N = 128 falls from 0.49 to 0.27 standard deviations. Wrong
  where prompts differ in the shape of their rewards.

  Args:
    rewards: `[..., P, num_rollouts]` of P prompts.
    budgets, law, tail_fraction, coefficient: see `predict_best_of_n`.

  Returns:
    `[..., P, num_budgets]`; the reward itself for a prompt without spread.
  """
  rewards = as_rewards(rewards)
  if rewards.ndim < 2 or rewards.shape[-1] < 2:
    raise ValueError(
      f"rewards of shape {rewards.shape} share no shape; [..., prompts, rollouts >= 2] is needed"
    )
  mean = jnp.mean(rewards, axis=-1, keepdims=True)
  scale = jnp.std(rewards, axis=-1, keepdims=True, ddof=1)
  varied = scale > 0
  standard = (rewards - mean) / jnp.where(varied, scale, 1.0)
  where = jnp.broadcast_to(varied, rewards.shape)
  shape = (*rewards.shape[:-2], -1)
  steps = predict_best_of_n(
    standard.reshape(shape),
    budgets,
    law=law,
    tail_fraction=tail_fraction,
    coefficient=coefficient,
    where=where.reshape(shape),
  )
  return mean + jnp.where(varied, scale * steps[..., None, :], 0.0)
