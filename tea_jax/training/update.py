"""One update of the policy: loss and gradient over micro-batches, clipped, applied if finite.

Advantages, learning rate and KL coefficient are inputs of the compiled update, so that every
advantage rule and schedule shares it. Axes: P prompts, m rollouts of each, T completion tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from tea_jax.rollout.types import Rollouts
from tea_jax.runs.objective import ObjectiveConfig
from tea_jax.runs.optimizer import OptimizerConfig
from tea_jax.training.kl import kl_estimate
from tea_jax.training.length_buckets import by_width
from tea_jax.training.micro_batches import (
  as_arrays,
  as_rollouts,
  cut_batch,
  spread_groups,
  summed_gradient,
)
from tea_jax.training.objective import policy_loss, token_weights
from tea_jax.training.optimizer import apply_gradient
from tea_jax.training.ratios import log_ratio

Tree = Any


class LogprobFunction(Protocol):
  """`(trainable, frozen, rollouts) -> (logprobs [P, m, T], entropy [P, m, T] or None)`."""

  def __call__(
    self, trainable: Tree, frozen: Tree, rollouts: Rollouts
  ) -> tuple[Float[Array, "P m T"], Float[Array, "P m T"] | None]: ...


class Batch(NamedTuple):
  """What one update learns from.

  Attributes:
    rollouts: groups of completions.
    advantages: `[P, m]`.
    where: `[P, m]`, which rollouts count.
    old_logprobs: `[P, m, T]` before the first update on this batch; None in that update.
    reference_logprobs: `[P, m, T]`, or None where nothing needs them.
  """

  rollouts: Rollouts
  advantages: Float[Array, "P m"]
  where: Bool[Array, "P m"]
  old_logprobs: Float[Array, "P m T"] | None = None
  reference_logprobs: Float[Array, "P m T"] | None = None


class Update(NamedTuple):
  """What one update returns.

  Attributes:
    trainable: new parameters; the old ones if the update was skipped.
    optimizer_state: of the new parameters.
    logprobs: `[P, m, T]` before this update: the old log-probs of the next one on this batch.
    metrics: scalars, see `make_update`.
  """

  trainable: Tree
  optimizer_state: optax.OptState
  logprobs: Float[Array, "P m T"]
  metrics: dict[str, Float[Array, ""]]


def make_update(
  compute_logprobs: LogprobFunction,
  objective: ObjectiveConfig,
  optimizer: OptimizerConfig,
  *,
  max_completion_length: int,
  shardings: tuple[Tree, Tree] | None = None,
  shards: int = 1,
) -> Callable[..., Update]:
  """Builds the jitted update.

  Args:
    compute_logprobs: of the policy; entropy may be None unless the objective rewards it.
    objective, optimizer: see there; `learning_rate`, schedule and `kl_coefficient` (beyond being
      zero or not) are not read, but arguments of the result.
    max_completion_length: L of the constant_length aggregation.
    shardings: of parameters and optimiser state, kept from update to update; None on one device.
    shards: parts into which the devices split the rollouts.

  Returns:
    `update(trainable, optimizer_state, frozen, batch, learning_rate, kl_coefficient) -> Update`,
    which donates the first two. Its metrics: policy_loss, grad_norm, entropy (exact if computed,
    else the unbiased -mean log-prob), skipped (1 if a value was not finite and nothing changed),
    kl and kl_per_token (where there is a reference), clip_ratio/{low,high} (share of tokens whose
    ratio is outside the clip on that side), and on the first update of a batch
    sampler/logp_difference/{mean,p95,max} and sampler/importance_ratio/{mean,max,clipped_frac}.
  """

  def loss_of(trainable, frozen, micro, kl_coefficient):
    logprobs, entropy = compute_logprobs(trainable, frozen, as_rollouts(micro))
    loss = policy_loss(
      logprobs,
      micro["advantages"],
      micro["weights"],
      config=objective,
      old_logprobs=micro["old_logprobs"],
      sampler_logprobs=micro["sampler_logprobs"],
      reference_logprobs=micro["reference_logprobs"],
      entropy=entropy,
      kl_coefficient=kl_coefficient,
    )
    return loss, (logprobs, entropy)

  value_and_grad = jax.value_and_grad(loss_of, has_aux=True)

  def update(trainable, optimizer_state, frozen, batch: Batch, learning_rate, kl_coefficient):
    prompts, rollouts, num_tokens = batch.rollouts.completion_tokens.shape
    weights = token_weights(
      batch.rollouts.completion_lengths,
      num_tokens,
      aggregation=objective.aggregation,
      max_completion_length=max_completion_length,
      where=batch.where,
    )
    arrays = {
      **as_arrays(batch.rollouts),
      "advantages": batch.advantages,
      "weights": weights,
      "old_logprobs": batch.old_logprobs,
      "reference_logprobs": batch.reference_logprobs,
    }
    pieces = cut_batch(
      arrays,
      optimizer.micro_batch_rollouts,
      length_buckets=optimizer.length_buckets,
      shards=shards,
    )
    if pieces is None:
      (loss, aux), gradient = value_and_grad(
        trainable, frozen, spread_groups(arrays, shards), kl_coefficient
      )
      aux = jax.tree.map(lambda x: x.reshape(prompts, rollouts, *x.shape[2:]), aux)
    else:
      loss, gradient, aux = summed_gradient(
        lambda trainable, micro: loss_of(trainable, frozen, micro, kl_coefficient),
        trainable,
        pieces.arrays,
        pieces.widths,
      )
      aux = jax.tree.map(pieces.join, aux)
    logprobs, entropy = aux

    new_trainable, new_state, applied = apply_gradient(
      trainable,
      optimizer_state,
      gradient,
      loss,
      optimizer=optimizer,
      learning_rate=learning_rate,
      shardings=shardings,
    )
    metrics = {
      "policy_loss": loss,
      **applied,
      **_token_metrics(batch, weights > 0, logprobs, entropy, objective),
    }
    return Update(
      new_trainable,
      new_state,
      logprobs,
      {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()},
    )

  return jax.jit(update, donate_argnums=(0, 1))


def make_evaluate_logprobs(
  compute_logprobs: LogprobFunction,
  *,
  micro_batch_rollouts: int = 0,
  length_buckets: int = 1,
  shards: int = 1,
) -> Callable[[Tree, Tree, Rollouts], Float[Array, "P m T"]]:
  """Jitted forward pass over micro-batches, for the reference policy."""

  def evaluate(trainable: Tree, frozen: Tree, rollouts: Rollouts) -> Array:
    def compute(micro: dict[str, Array]) -> tuple[None, Array]:
      return None, compute_logprobs(trainable, frozen, as_rollouts(micro))[0]

    arrays = as_arrays(rollouts)
    pieces = cut_batch(arrays, micro_batch_rollouts, length_buckets=length_buckets, shards=shards)
    if pieces is None:
      logprobs = compute(spread_groups(arrays, shards))[1]
      return logprobs.reshape(rollouts.completion_tokens.shape)
    compute_any = by_width(compute, pieces.widths) if pieces.widths else compute
    return pieces.join(jax.lax.map(compute_any, pieces.arrays)[1])

  return jax.jit(evaluate)


def _token_metrics(
  batch: Batch,
  mask: Bool[Array, "P m T"],
  logprobs: Float[Array, "P m T"],
  entropy: Float[Array, "P m T"] | None,
  objective: ObjectiveConfig,
) -> dict[str, Array]:
  num_tokens = jnp.maximum(mask.sum(), 1)
  num_rollouts = jnp.maximum(batch.where.sum(), 1)

  def mean(values: Array) -> Array:
    return jnp.where(mask, values, 0.0).sum() / num_tokens

  metrics = {"entropy": mean(-logprobs if entropy is None else entropy)}
  if batch.reference_logprobs is not None:
    total = kl_estimate(logprobs, batch.reference_logprobs, mask, estimator="k3").sum()
    metrics |= {"kl": total / num_rollouts, "kl_per_token": total / num_tokens}
  if batch.old_logprobs is None:
    difference = log_ratio(logprobs, batch.rollouts.logprobs, mask)
    ratio = jnp.exp(difference)
    size = jnp.where(mask, jnp.abs(difference), jnp.nan)
    cap = jnp.inf if objective.importance_cap is None else objective.importance_cap
    metrics |= {
      "sampler/logp_difference/mean": mean(jnp.abs(difference)),
      "sampler/logp_difference/p95": jnp.nanquantile(size, 0.95),
      "sampler/logp_difference/max": jnp.max(jnp.where(mask, size, 0.0)),
      "sampler/importance_ratio/mean": mean(ratio),
      "sampler/importance_ratio/max": jnp.max(jnp.where(mask, ratio, 0.0)),
      "sampler/importance_ratio/clipped_frac": mean(ratio > cap),
    }
  else:
    ratio = jnp.exp(log_ratio(logprobs, batch.old_logprobs, mask))
    if objective.clip_epsilon_low is not None:
      metrics["clip_ratio/low"] = mean(ratio < 1 - objective.clip_epsilon_low)
    if objective.clip_epsilon_high is not None:
      metrics["clip_ratio/high"] = mean(ratio > 1 + objective.clip_epsilon_high)
  return metrics
