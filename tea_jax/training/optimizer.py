"""The optimiser: an optax transformation without its learning rate, and the schedule beside it.

The learning rate is an input of the compiled update, so that runs with other rates and schedules
share it: `update = -learning_rate * transformation(clip(gradient))`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tea_jax.runs.optimizer import OptimizerConfig


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
