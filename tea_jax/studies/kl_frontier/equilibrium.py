"""Trains a policy of a small world by an advantage rule until nothing moves any more.

With coefficient beta a rule's equilibrium is where its mean gradient equals beta times that of the
KL. It does not depend on the optimiser, so the quickest is used: damped natural-gradient steps,

  params += rate * (Fisher^-1 E[A score] / beta - Fisher^-1 grad KL).

Axes: C coefficients, d parameters.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tea_jax.advantages import AdvantageRule
from tea_jax.runtime.keys import make_key
from tea_jax.studies.kl_frontier.worlds import Draw, World

_LONGEST_STEP = 4.0  # of params / rate: far from equilibrium a natural gradient can be huge


@dataclasses.dataclass(frozen=True)
class EquilibriumConfig:
  """How an equilibrium is found.

  Attributes:
    num_groups: groups of rollouts a step; a multiple of the world's prompts.
    num_rollouts: m.
    steps: of training; the parameters are averaged over the last third.
    first_rate: damping of the first step; falls geometrically to `last_rate`.
    last_rate: damping of the last step.
    seed: of the draws.
  """

  num_groups: int = 16
  num_rollouts: int = 32
  steps: int = 400
  first_rate: float = 0.1
  last_rate: float = 0.02
  seed: int = 0

  def __post_init__(self) -> None:
    if self.steps < 30:
      raise ValueError(f"steps={self.steps} reaches no equilibrium; use 30 or more")
    if not 0 < self.last_rate <= self.first_rate <= 1:
      raise ValueError(
        f"first_rate={self.first_rate} and last_rate={self.last_rate} must fall within (0, 1]"
      )


Trainer = Callable[[World, Array], Float[Array, "C d"]]


def make_trainer(rule: AdvantageRule, config: EquilibriumConfig) -> Trainer:
  """`(world, coefficients [C]) -> parameters at equilibrium [C, d]`, compiled once a kind of world.

  Args:
    rule: may ask for keys, log-probabilities or quantiles; quantiles are exact.
    config: see there.
  """
  rates = np.geomspace(config.first_rate, config.last_rate, config.steps).astype(np.float32)
  averaged = config.steps // 3

  def equilibrium(world: World, coefficient: Array) -> Array:
    def step(params: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
      rate, key = inputs
      draw = world.draw(params, key, num_groups=config.num_groups, num_rollouts=config.num_rollouts)
      gradient = jnp.mean(_advantages(rule, draw, key)[..., None] * draw.scores, axis=(0, 1))
      direction = world.natural(params, gradient) / coefficient - world.kl_natural_gradient(params)
      length = jnp.linalg.norm(direction)
      direction = direction * jnp.minimum(1.0, _LONGEST_STEP / jnp.maximum(length, 1e-12))
      params = params + rate * direction
      return params, params

    keys = jax.random.split(make_key(config.seed), config.steps)
    _, path = jax.lax.scan(step, world.start(), (jnp.asarray(rates), keys))
    return path[-averaged:].mean(0)

  return jax.jit(jax.vmap(equilibrium, in_axes=(None, 0)))


class Signal(NamedTuple):
  """A rule's gradient at the base policy, in the metric of the Fisher matrix.

  Attributes:
    strength: sqrt(g . Fisher^-1 g) of the mean gradient g. To first order coefficient beta leads to
      KL = (strength / beta)^2 / 2, whatever the scale of the rule's advantages.
    groups: how many groups a step averages until its noise, squared, equals strength^2.
  """

  strength: float
  groups: float


def base_signal(rule: AdvantageRule, world: World, config: EquilibriumConfig) -> Signal:
  """Measured on 512 groups."""
  key = make_key(config.seed + 1)
  start = world.start()
  draw = world.draw(start, key, num_groups=512, num_rollouts=config.num_rollouts)
  gradients = jnp.mean(_advantages(rule, draw, key)[..., None] * draw.scores, axis=1)
  directions = jax.vmap(world.natural, in_axes=(None, 0))(start, gradients)
  squares = jnp.sum(gradients * directions, -1).mean()  # strength^2 + noise^2 of one group
  of_mean = gradients.mean(0) @ directions.mean(0)  # strength^2 + noise^2 / 512
  noise = (squares - of_mean) * 512 / 511
  strength = of_mean - noise / 512
  if strength <= 0:  # 512 groups cannot tell it from noise
    return Signal(float(jnp.sqrt(of_mean)), float("inf"))
  return Signal(float(jnp.sqrt(strength)), float(noise / strength))


def best_of_n_values(
  world: World, params: Float[Array, "C d"], budgets: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
  """`(kl [C], best-of-N [C, len(budgets)])` of policies, exact, float64."""

  def one(point: Array) -> tuple[Array, Array]:
    return world.kl(point), jnp.stack([world.best_of_n(point, n) for n in budgets])

  kl, values = jax.vmap(one)(params)
  return np.asarray(kl, np.float64), np.asarray(values, np.float64)


def _advantages(rule: AdvantageRule, draw: Draw, key: Array) -> Array:
  return rule(
    draw.rewards,
    key=jax.random.fold_in(key, 1),
    logprobs=draw.logprobs,
    quantiles=draw.quantiles,
  )
