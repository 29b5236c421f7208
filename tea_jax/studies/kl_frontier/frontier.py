"""Best-of-N against KL of every rule in every world, and the most that the policies can reach.

Axes: B budgets.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy import optimize

from tea_jax import advantages
from tea_jax.advantages import AdvantageRule
from tea_jax.studies.kl_frontier.equilibrium import (
  EquilibriumConfig,
  base_signal,
  best_of_n_values,
  make_trainer,
)
from tea_jax.studies.kl_frontier.worlds import WORLDS, World, make_world

_LARGEST_KL = 3.0  # of ceilings and figures
_JUMP = 3.0  # two neighbours on a curve whose KLs differ by more say nothing about between


@dataclasses.dataclass(frozen=True)
class FrontierConfig(EquilibriumConfig):
  """What is compared.

  Attributes:
    worlds: names, see `make_world`.
    budgets: of the curves; the last is the one that rules and ceiling are for.
    num_coefficients: of each rule: its grid.
    kl_range: the KLs that the first and last coefficient would lead to if policies were linear.
    targets: KLs of the table.
    num_prompts, num_responses: of the softmax worlds.
    world_seed: of the softmax worlds.
  """

  worlds: tuple[str, ...] = WORLDS
  budgets: tuple[int, ...] = (1, 8, 128)
  num_coefficients: int = 12
  kl_range: tuple[float, float] = (0.01, 30.0)
  targets: tuple[float, ...] = (0.1, 0.5, 1.0)
  num_prompts: int = 8
  num_responses: int = 256
  world_seed: int = 0

  def __post_init__(self) -> None:
    super().__post_init__()
    if unknown := [name for name in self.worlds if name not in WORLDS]:
      raise ValueError(f"worlds has {unknown}; known: {', '.join(WORLDS)}")
    if not 0 < self.kl_range[0] < self.kl_range[1]:
      raise ValueError(f"kl_range={self.kl_range} must be two rising positive numbers")
    if self.num_groups % self.num_prompts:
      raise ValueError(
        f"num_groups={self.num_groups} must be a multiple of num_prompts={self.num_prompts}"
      )


@dataclasses.dataclass(frozen=True)
class Curve:
  """Policies from a weak to a strong push away from the base.

  Attributes:
    coefficients: falling; empty for a ceiling.
    kl: of each policy.
    values: best-of-N of each policy, `[len(kl), B]`.
    groups: see `Signal`; NaN for a ceiling.
  """

  coefficients: list[float]
  kl: list[float]
  values: list[list[float]]
  groups: float = float("nan")

  def at(self, kl: float, start: Sequence[float]) -> Float[np.ndarray, "B"] | None:
    """Values at a KL, linear in sqrt(KL) between neighbours.

    Args:
      kl: where.
      start: `[B]` values of the base policy.

    Returns:
      None where the curve does not go, or jumps from far below to far above.
    """
    before, old = 0.0, np.asarray(start)
    for after, new in zip(self.kl, np.asarray(self.values)):
      if before <= kl <= after:
        if after > _JUMP * max(before, 1e-9):
          return None
        share = (kl**0.5 - before**0.5) / max(after**0.5 - before**0.5, 1e-9)
        return old + (new - old) * share
      before, old = after, new
    return None


@dataclasses.dataclass(frozen=True)
class WorldResult:
  """One world's frontier.

  Attributes:
    base: `[B]` values of the base policy.
    rules: label -> curve.
    ceiling: the largest best of the last budget at each KL, over all policies of the world.
  """

  base: list[float]
  rules: Mapping[str, Curve]
  ceiling: Curve

  def share(self, rule: str, kl: float) -> float | None:
    """Gain in best-of-N over the base at this KL, as a share of the ceiling's; see `Curve.at`."""
    reached, most = self.rules[rule].at(kl, self.base), self.ceiling.at(kl, self.base)
    if reached is None or most is None:
      return None
    return float((reached[-1] - self.base[-1]) / (most[-1] - self.base[-1]))


def default_rules(budget: int, num_rollouts: int) -> dict[str, AdvantageRule]:
  """The rules for rewards on a scale, for groups of `num_rollouts` and deployment at `budget`.

  `rloo` is `grpo` times m / (m - 1), so its frontier is the same.
  """
  half = max(num_rollouts // 2, 1)
  return {
    "grpo": advantages.grpo(),
    "tea 1/4": advantages.tea(tail_fraction=0.25, budget=budget),
    "tea 1/2": advantages.tea(tail_fraction=0.5, budget=budget),
    "subset_tea 1/2": advantages.subset_tea(tail_fraction=0.5, budget=budget),
    "tail_influence 1/4": advantages.tail_influence(tail_fraction=0.25, budget=budget),
    "tail_influence 1/2": advantages.tail_influence(tail_fraction=0.5, budget=budget),
    "blended_influence": advantages.blended_influence(budget=budget),
    f"max_at_k k={half}": advantages.max_at_k(k=half),
    "bon_max_mean": advantages.bon_max_mean(),
    "bon_max_second": advantages.bon_max_second(),
    "bon_rl": advantages.bon_rl(),
    "cat_best_of_n": advantages.cat_best_of_n(budget=budget, quantile="tracked"),
  }


def run_frontier(
  config: FrontierConfig,
  rules: Mapping[str, AdvantageRule],
  *,
  workers: int = 2,
  progress: Callable[[str], None] = lambda _: None,
) -> dict[str, WorldResult]:
  """World -> its frontier.

  Args:
    config: see there.
    rules: label -> rule.
    workers: rules that are trained at the same time.
    progress: told the label of each rule that is done.
  """
  worlds = {
    name: make_world(
      name,
      num_prompts=config.num_prompts,
      num_responses=config.num_responses,
      seed=config.world_seed,
    )
    for name in config.worlds
  }

  def run(label: str) -> dict[str, tuple[np.ndarray, Curve]]:
    trainer = make_trainer(rules[label], config)
    found = {}
    for name, world in worlds.items():
      nominal = np.geomspace(*config.kl_range, config.num_coefficients)
      signal = base_signal(rules[label], world, config)
      coefficients = signal.strength / np.sqrt(2 * nominal)
      params = trainer(world, jnp.asarray(coefficients, jnp.float32))
      kl, values = best_of_n_values(world, params, config.budgets)
      curve = Curve(coefficients.tolist(), kl.tolist(), values.tolist(), signal.groups)
      found[name] = (np.asarray(params), curve)
    progress(label)
    return found

  with ThreadPoolExecutor(workers) as pool:
    done = dict(zip(rules, pool.map(run, rules)))
  results = {}
  for name, world in worlds.items():
    trained = np.concatenate([done[label][name][0] for label in rules])
    _, base = best_of_n_values(world, world.start()[None], config.budgets)
    results[name] = WorldResult(
      base=base[0].tolist(),
      rules={label: done[label][name][1] for label in rules},
      ceiling=ceiling(world, config, starts=trained),
    )
  return results


def ceiling(world: World, config: FrontierConfig, *, starts: Float[np.ndarray, "S d"]) -> Curve:
  """Maximum of best-of-N over the policies of at most each KL, by sequential programming (SLSQP).

  Args:
    world: whose policies.
    config: its last budget is maximised.
    starts: policies to start from: at each KL the one is tried whose value is largest among those
      of at most this KL, and the optimum of the KL before.
  """
  budget = config.budgets[-1]
  value = jax.jit(jax.value_and_grad(lambda p: -world.best_of_n(p, budget)))
  divergence = jax.jit(jax.value_and_grad(world.kl))

  def loss(params: np.ndarray) -> tuple[float, np.ndarray]:
    number, gradient = value(jnp.asarray(params, jnp.float32))
    return float(number), np.asarray(gradient, np.float64)

  def room(params: np.ndarray, kl: float) -> float:
    return kl - float(divergence(jnp.asarray(params, jnp.float32))[0])

  def room_gradient(params: np.ndarray, _: float) -> np.ndarray:
    return -np.asarray(divergence(jnp.asarray(params, jnp.float32))[1], np.float64)

  kls, values = best_of_n_values(world, jnp.asarray(starts, jnp.float32), [budget])
  previous, found = np.asarray(world.start(), np.float64), []
  grid = np.unique([*np.geomspace(0.01, _LARGEST_KL, 10), *config.targets])
  for kl in grid:
    largest = starts[np.argmax(np.where(kls <= kl, values[:, 0], -np.inf))]
    best = previous
    for start in (previous, np.asarray(largest, np.float64)):
      solved = optimize.minimize(
        loss,
        start,
        jac=True,
        method="SLSQP",
        constraints={"type": "ineq", "fun": room, "jac": room_gradient, "args": (kl,)},
        options={"maxiter": 100, "ftol": 1e-6},
      ).x
      for candidate in (solved, start):
        if room(candidate, kl) >= -1e-3 * kl and loss(candidate)[0] < loss(best)[0]:
          best = candidate
    previous = best
    found.append(best)
  kl, values = best_of_n_values(world, jnp.asarray(np.stack(found), jnp.float32), config.budgets)
  return Curve([], grid.tolist(), values.tolist())
