"""An advantage rule of your own: a factory whose arguments are flags.

    python -m experiments.compare --preset quickstart --run-folder runs/own_rule \
      --rules experiments/examples/own_rule.py:signed:margin=0.5 grpo
    python -m experiments.train --preset quickstart --run-folder runs/signed \
      --advantage.name experiments/examples/own_rule.py:signed --advantage.margin 0.5
"""

from __future__ import annotations

import jax.numpy as jnp


def signed(*, margin: float = 0.0):
  """+1 above the group's mean plus `margin`, else -1.

  Args:
    margin: in units of reward.
  """

  def advantages(rewards, where=None):
    # `where` is False for rollouts that were not scored: they get 0 and influence nothing.
    where = jnp.ones(rewards.shape, bool) if where is None else where
    count = jnp.maximum(where.sum(axis=-1, keepdims=True), 1)
    mean = jnp.where(where, rewards, 0.0).sum(axis=-1, keepdims=True) / count
    return jnp.where(where, jnp.sign(rewards - mean - margin), 0.0)

  return advantages
