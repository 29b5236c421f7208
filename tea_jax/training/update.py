"""One update of the policy: loss and gradient over micro-batches, clipped, applied if finite.

Advantages, learning rate and KL coefficient are inputs of the compiled update, so that every
advantage rule and schedule shares it. Axes: P prompts, m rollouts of each, T completion tokens.
"""

from __future__ import annotations

import math
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


_PER_PROMPT = ("prompt_tokens", "prompt_lengths")


def micro_batch_shape(
  prompts: int, rollouts: int, micro_batch_rollouts: int, *, shards: int = 1
) -> tuple[int, int]:
  """(prompts, rollouts of each) of a micro-batch: of every shard's prompts where they divide.

  Whole groups stay together while they fit, since a group computes its prompt once.

  Args:
    prompts, rollouts: P and m of the batch.
    micro_batch_rollouts: rollouts of a micro-batch, at most.
    shards: parts into which the devices split the prompts.
  """
  width = math.gcd(micro_batch_rollouts, rollouts)
  height = math.gcd(micro_batch_rollouts // width, prompts)
  own, rest = divmod(micro_batch_rollouts, shards)
  if height % shards and not (prompts % shards or rest or own == 0 or rollouts % own):
    return shards, own
  return height, width


def split_micro_batches(tree: Tree, shape: tuple[int, int]) -> Tree:
  """Reshapes the leaves `[P, m, ...]` of a batch to `[n, p, r, ...]`, micro-batches of p x r.

  `Rollouts.prompt_*`, whose leaves are `[P, ...]`, are repeated when a group is split.
  """
  (prompts, rollouts), (height, width) = tree["lengths"].shape, shape
  parts = rollouts // width

  # Strided, so that an axis that is split over prompts stays split inside a micro-batch.
  def split(name: str, leaf: Array) -> Array:
    if name in _PER_PROMPT:
      rest = leaf.shape[1:]
      leaf = jnp.repeat(jnp.swapaxes(leaf.reshape(height, -1, *rest), 0, 1), parts, axis=0)
      return leaf
    leaf = leaf.reshape(height, prompts // height, parts, width, *leaf.shape[2:])
    return jnp.moveaxis(leaf, 0, 2).reshape(-1, height, width, *leaf.shape[4:])

  return {name: None if leaf is None else split(name, leaf) for name, leaf in tree.items()}


def join_micro_batches(leaf: Array, prompts: int, rollouts: int) -> Array:
  """Inverse of `split_micro_batches` for a leaf `[n, p, r, ...]`: back to `[P, m, ...]`."""
  _, height, width, *rest = leaf.shape
  leaf = leaf.reshape(prompts // height, rollouts // width, height, width, *rest)
  return jnp.moveaxis(leaf, 2, 0).reshape(prompts, rollouts, *rest)


def spread_groups(tree: Tree, shards: int) -> Tree:
  """Cuts groups `[P, m, ...]` to `[P f, m / f, ...]` so that devices divide the leading axis.

  f is the smallest that does, 1 if none does; the prompt of a cut group is repeated.
  """
  prompts, rollouts = tree["lengths"].shape
  fitting = [f for f in range(1, shards + 1) if prompts * f % shards == 0 and rollouts % f == 0]
  factor = min(fitting, default=1)

  def cut(name: str, leaf: Array | None) -> Array | None:
    if leaf is None or factor == 1:
      return leaf
    if name in _PER_PROMPT:
      return jnp.repeat(leaf, factor, axis=0)
    return leaf.reshape(prompts * factor, rollouts // factor, *leaf.shape[2:])

  return {name: cut(name, leaf) for name, leaf in tree.items()}


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
    arrays = spread_groups(arrays, shards)
    own_shape: tuple[int, int] = arrays["lengths"].shape
    size = optimizer.micro_batch_rollouts or prompts * rollouts
    if size >= prompts * rollouts:
      (loss, (logprobs, entropy)), gradient = value_and_grad(
        trainable, frozen, arrays, kl_coefficient
      )
    else:
      loss, gradient, aux = summed_gradient(
        lambda trainable, micro: loss_of(trainable, frozen, micro, kl_coefficient),
        trainable,
        split_micro_batches(arrays, micro_batch_shape(*own_shape, size, shards=shards)),
      )
      logprobs, entropy = jax.tree.map(lambda x: join_micro_batches(x, *own_shape), aux)
    logprobs, entropy = jax.tree.map(
      lambda x: x.reshape(prompts, rollouts, *x.shape[2:]), (logprobs, entropy)
    )

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


def summed_gradient(
  loss_of: Callable[[Tree, Tree], tuple[Array, Tree]], trainable: Tree, micro_batches: Tree
) -> tuple[Array, Tree, Tree]:
  """`(loss, gradient, stacked extras)`, added up over the leading axis of `micro_batches`.

  Args:
    loss_of: `(trainable, micro-batch) -> (loss, extras)`; losses of micro-batches add up.
    trainable: parameters.
    micro_batches: arrays `[n, ...]`.
  """
  value_and_grad = jax.value_and_grad(loss_of, has_aux=True)

  def accumulate(total: Tree, micro: Tree) -> tuple[Tree, Tree]:
    (loss, extras), gradient = value_and_grad(trainable, micro)
    return jax.tree.map(jnp.add, total, (loss, gradient)), extras

  zeros = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, trainable))
  (loss, gradient), extras = jax.lax.scan(accumulate, zeros, micro_batches)
  return loss, gradient, extras


def apply_gradient(
  trainable: Tree,
  optimizer_state: optax.OptState,
  gradient: Tree,
  loss: Array,
  *,
  optimizer: OptimizerConfig,
  learning_rate: Array,
  shardings: tuple[Tree, Tree] | None = None,
) -> tuple[Tree, optax.OptState, dict[str, Array]]:
  """Clips the gradient and moves the parameters; where something is not finite, nothing changes.

  Args:
    trainable, optimizer_state: before the update.
    gradient, loss: of the whole batch.
    optimizer: its transformation and `max_gradient_norm`.
    learning_rate: scalar.
    shardings: of parameters and optimiser state; None on one device.

  Returns:
    Parameters, optimiser state, and the metrics grad_norm (before the clip) and skipped.
  """
  transformation = make_transformation(optimizer)
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
  return new_trainable, new_state, {"grad_norm": norm, "skipped": 1.0 - finite}


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
  compute_logprobs: LogprobFunction, *, micro_batch_rollouts: int = 0, shards: int = 1
) -> Callable[[Tree, Tree, Rollouts], Float[Array, "P m T"]]:
  """Jitted forward pass over micro-batches, for the reference policy."""

  def evaluate(trainable: Tree, frozen: Tree, rollouts: Rollouts) -> Array:
    arrays = spread_groups(_arrays(rollouts), shards)
    shape: tuple[int, int] = arrays["lengths"].shape
    size = micro_batch_rollouts or shape[0] * shape[1]

    def compute(micro: dict[str, Array]) -> Array:
      return compute_logprobs(trainable, frozen, _rollouts(micro))[0]

    if size >= shape[0] * shape[1]:
      logprobs = compute(arrays)
    else:
      micro_batches = split_micro_batches(arrays, micro_batch_shape(*shape, size, shards=shards))
      logprobs = join_micro_batches(jax.lax.map(compute, micro_batches), *shape)
    return logprobs.reshape(rollouts.completion_tokens.shape)

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
