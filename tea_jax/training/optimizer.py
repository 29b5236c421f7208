"""The optimiser: an optax transformation without its learning rate, the schedule beside it, a step.

The learning rate is an input of the compiled update, so that runs with other rates and schedules
share it: `update = -learning_rate * transformation(clip(gradient))`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from tea_jax.runs.optimizer import OptimizerConfig

Tree = Any


def make_transformation(config: OptimizerConfig) -> optax.GradientTransformation:
  """Clipped gradient to direction: moments and weight decay, without the learning rate."""
  parts = []
  if config.name == "adamw":
    parts.append(optax.scale_by_adam(b1=config.beta1, b2=config.beta2, eps=config.epsilon))
  elif config.name == "lion":
    parts.append(optax.scale_by_lion(b1=config.beta1, b2=config.beta2))
  elif config.beta1 > 0:
    parts.append(optax.trace(decay=config.beta1))
  if config.weight_decay > 0:
    parts.append(optax.add_decayed_weights(config.weight_decay, mask=_decayed))
  return optax.chain(*parts) if parts else optax.identity()


def _decayed(params):
  """Matrices decay; norms and biases, of which each layer has one row, do not."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: path[-1].key in ("kernel", "embedding", "a", "b"), params
  )


def learning_rates(config: OptimizerConfig, steps: int) -> np.ndarray:
  """`[steps]` float32, the learning rate of each step; a step's updates share it."""
  decay_steps = max(steps - config.warmup_steps, 1)
  peak, final = config.learning_rate, config.final_learning_rate_ratio
  if config.schedule == "constant":
    schedule = optax.constant_schedule(peak)
  elif config.schedule == "linear":
    schedule = optax.linear_schedule(peak, peak * final, decay_steps)
  else:
    schedule = optax.cosine_decay_schedule(peak, decay_steps, alpha=final)
  if config.warmup_steps:
    # Step 0 already moves: a learning rate of 0 would waste its rollouts.
    warmup = optax.linear_schedule(peak / config.warmup_steps, peak, config.warmup_steps - 1 or 1)
    schedule = optax.join_schedules([warmup, schedule], [config.warmup_steps])
  table = jax.jit(jax.vmap(lambda step: jnp.asarray(schedule(step), jnp.float32)))
  return np.asarray(table(jnp.arange(steps)))


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
