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
from tea_jax.training.objective import policy_loss, token_weights
from tea_jax.training.optimizer import make_transformation
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


def split_micro_batches(tree: Tree, micro_batch_rollouts: int) -> Tree:
  """Reshapes the leaves `[P, m, ...]` of a batch to `[n, P / n, m, ...]` or `[P n, 1, m / n, ...]`.

  Whole groups stay together while they fit, since a group computes its prompt once.
  `Rollouts.prompt_*`, whose leaves are `[P, ...]`, are repeated when a group is split.
  """
  prompts, rollouts = tree["lengths"].shape
  if micro_batch_rollouts >= rollouts:
    size = micro_batch_rollouts // rollouts

    # Strided, so that an axis that is sharded over prompts stays sharded inside a micro-batch.
    def split(leaf: Array) -> Array:
      return jnp.swapaxes(leaf.reshape(size, prompts // size, *leaf.shape[1:]), 0, 1)

    return jax.tree.map(split, tree)
  parts = rollouts // micro_batch_rollouts

  def split_group(leaf: Array) -> Array:
    return leaf.reshape(prompts * parts, 1, micro_batch_rollouts, *leaf.shape[2:])

  per_prompt = ("prompt_tokens", "prompt_lengths")
  return {
    name: jnp.repeat(leaf, parts, axis=0)[:, None]
    if name in per_prompt
    else None
    if leaf is None
    else split_group(leaf)
    for name, leaf in tree.items()
  }


def join_micro_batches(leaf: Array, prompts: int, rollouts: int) -> Array:
  """Inverse of `split_micro_batches` for a leaf `[n, p, b, ...]`: back to `[P, m, ...]`."""
  if leaf.shape[2] == rollouts:
    leaf = jnp.swapaxes(leaf, 0, 1)
  return leaf.reshape(prompts, rollouts, *leaf.shape[3:])


def _rollouts(micro: dict[str, Array]) -> Rollouts:
  return Rollouts(
    prompt_tokens=micro["prompt_tokens"],
    prompt_lengths=micro["prompt_lengths"],
    completion_tokens=micro["tokens"],
    completion_lengths=micro["lengths"],
    finished=micro["finished"],
    logprobs=micro["sampler_logprobs"],
    sampling_logprobs=micro["sampler_logprobs"],
  )


def _arrays(rollouts: Rollouts) -> dict[str, Array]:
  return {
    "prompt_tokens": rollouts.prompt_tokens,
    "prompt_lengths": rollouts.prompt_lengths,
    "tokens": rollouts.completion_tokens,
    "lengths": rollouts.completion_lengths,
    "finished": rollouts.finished,
    "sampler_logprobs": rollouts.logprobs,
  }


def make_update(
  compute_logprobs: LogprobFunction,
  objective: ObjectiveConfig,
  optimizer: OptimizerConfig,
  *,
  max_completion_length: int,
  shardings: tuple[Tree, Tree] | None = None,
) -> Callable[..., Update]:
  """Builds the jitted update.

  Args:
    compute_logprobs: of the policy; entropy may be None unless the objective rewards it.
    objective, optimizer: see there; `learning_rate`, schedule and `kl_coefficient` (beyond being
      zero or not) are not read, but arguments of the result.
    max_completion_length: L of the constant_length aggregation.
    shardings: of parameters and optimiser state, kept from update to update; None on one device.

  Returns:
    `update(trainable, optimizer_state, frozen, batch, learning_rate, kl_coefficient) -> Update`,
    which donates the first two. Its metrics: policy_loss, grad_norm, entropy (exact if computed,
    else the unbiased -mean log-prob), skipped (1 if a value was not finite and nothing changed),
    kl and kl_per_token (where there is a reference), clip_ratio/{low,high} (share of tokens whose
    ratio is outside the clip on that side), and on the first update of a batch
    sampler/logp_difference/{mean,p95,max} and sampler/importance_ratio/{mean,max,clipped_frac}.
  """
  transformation = make_transformation(optimizer)

  def loss_of(trainable, frozen, micro, kl_coefficient):
    logprobs, entropy = compute_logprobs(trainable, frozen, _rollouts(micro))
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
      **_arrays(batch.rollouts),
      "advantages": batch.advantages,
      "weights": weights,
      "old_logprobs": batch.old_logprobs,
      "reference_logprobs": batch.reference_logprobs,
    }
    size = optimizer.micro_batch_rollouts or prompts * rollouts
    if size >= prompts * rollouts:
      (loss, (logprobs, entropy)), gradient = value_and_grad(
        trainable, frozen, arrays, kl_coefficient
      )
    else:

      def accumulate(total, micro):
        (loss, aux), gradient = value_and_grad(trainable, frozen, micro, kl_coefficient)
        return jax.tree.map(jnp.add, total, (loss, gradient)), aux

      zeros = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, trainable))
      (loss, gradient), aux = jax.lax.scan(accumulate, zeros, split_micro_batches(arrays, size))
      logprobs, entropy = jax.tree.map(lambda x: join_micro_batches(x, prompts, rollouts), aux)

    norm = optax.tree.norm(gradient)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    if optimizer.max_gradient_norm > 0:
      scale = jnp.minimum(1.0, optimizer.max_gradient_norm / jnp.maximum(norm, 1e-30))
      gradient = jax.tree.map(lambda g: g * scale.astype(g.dtype), gradient)
    direction, new_state = transformation.update(gradient, optimizer_state, trainable)
    new = jax.tree.map(lambda p, d: (p - learning_rate * d).astype(p.dtype), trainable, direction)

    def keep_if_not_finite(after, before):
      return jax.tree.map(lambda a, b: jnp.where(finite, a, b), after, before)

    results = (keep_if_not_finite(new, trainable), keep_if_not_finite(new_state, optimizer_state))
    if shardings is not None:
      results = jax.lax.with_sharding_constraint(results, shardings)
    new_trainable, new_state = results

    metrics = {
      "policy_loss": loss,
      "grad_norm": norm,
      "skipped": 1.0 - finite,
      **_token_metrics(batch, weights > 0, logprobs, entropy, objective),
    }
    return Update(
      new_trainable,
      new_state,
      logprobs,
      {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()},
    )

  return jax.jit(update, donate_argnums=(0, 1))


def init_optimizer(optimizer: OptimizerConfig, trainable: Tree, shardings: Tree = None) -> Any:
  """State of the optimiser, in the layout that `optimizer_shardings` gives."""
  return jax.jit(make_transformation(optimizer).init, out_shardings=shardings)(trainable)


def optimizer_shardings(optimizer: OptimizerConfig, trainable: Tree, shardings: Tree) -> Tree:
  """Shardings of the optimiser's state: moments lie where their parameters do, counts everywhere.

  Args:
    optimizer: which state there is.
    trainable: parameters or their shapes.
    shardings: of the parameters, `NamedSharding`s of one mesh.
  """
  transformation = make_transformation(optimizer)
  mesh = jax.tree.leaves(shardings)[0].mesh
  everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  return optax.tree.map_params(
    transformation,
    lambda _, sharding: sharding,
    jax.eval_shape(transformation.init, trainable),
    shardings,
    transform_non_params=lambda _: everywhere,
  )


def make_evaluate_logprobs(
  compute_logprobs: LogprobFunction, *, micro_batch_rollouts: int = 0
) -> Callable[[Tree, Tree, Rollouts], Float[Array, "P m T"]]:
  """Jitted forward pass over micro-batches, for the reference policy."""

  def evaluate(trainable: Tree, frozen: Tree, rollouts: Rollouts) -> Array:
    prompts, group, _ = rollouts.completion_tokens.shape
    size = micro_batch_rollouts or prompts * group
    if size >= prompts * group:
      return compute_logprobs(trainable, frozen, rollouts)[0]
    logprobs = jax.lax.map(
      lambda micro: compute_logprobs(trainable, frozen, _rollouts(micro))[0],
      split_micro_batches(_arrays(rollouts), size),
    )
    return join_micro_batches(logprobs, prompts, group)

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
