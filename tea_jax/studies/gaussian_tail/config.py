"""What the Gaussian-tail diagnostic runs: its settings, and the cells that follow from them.

A cell is one estimator at one number of rollouts.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np

from tea_jax import tail as tails

ESTIMATORS = ("tea", "tail_influence", "prefix", "prefix_larger", "subset_averaged")


PREFIX_ESTIMATORS = ("prefix", "prefix_larger")


# Part of the name of a cell: raise it when the meaning of the numbers in it changes.
_SCHEMA = 1


def _sin_cos(values: Any, xp: Any) -> Any:
  return xp.stack([xp.sin(values), xp.cos(values)], axis=-1)


def _tanh_cos(values: Any, xp: Any) -> Any:
  return xp.stack([xp.tanh(values), xp.cos(values)], axis=-1)


def _tanh_bump(values: Any, xp: Any) -> Any:
  return xp.stack([xp.tanh(values), 1.0 / (1.0 + values * values)], axis=-1)


SCORES: dict[str, Callable[[Any, Any], Any]] = {
  "sin_cos": _sin_cos,
  "tanh_cos": _tanh_cos,
  "tanh_bump": _tanh_bump,
}


@dataclasses.dataclass(frozen=True)
class DiagnosticConfig:
  """Everything that the diagnostic leaves free. Each field is a flag of the experiment.

  Attributes:
    tail_fraction: alpha, the upper share taken as tail.
    budget: N, the deployment budget.
    order: K, powers of 1/m that Prefix-TEA cancels.
    fractions: shares of a half that the prefixes of Prefix-TEA take.
    larger_fractions: the same for the ablation with more prefixes.
    objective: what the cancellation weights minimise: "norm" or "variance".
    subset_order: powers of 1/m that subset-averaged Prefix-TEA cancels.
    subset_fractions: shares of the group that its subsets take.
    num_orders: random orders that it averages over.
    orders: how it draws them: "reversed", every second one the reverse of the one before, or
      "independent", the form that the rule `subset_tea` trains on.
    scale_floor: smallest tail scale, in units of reward.
    score: bounded two-dimensional score function: sin_cos, tanh_cos or tanh_bump.
    num_rollouts: m, the group sizes of TEA, tail-influence and subset-averaged Prefix-TEA.
    prefix_num_rollouts: m, the group sizes of Prefix-TEA. Below 128 its smallest prefix has so few
      tail rollouts that its variance does not exist.
    trials: groups in each cell, at least, but for subset-averaged Prefix-TEA.
    subset_trials: groups in its cells, at least; each costs several of the others.
    prefix_rollouts: rollouts in each Prefix-TEA cell, at least: more groups where they are small,
      since the bias that is to be told from noise falls with m^-3. Half of it in the ablation.
    subset_rollouts: the same for subset-averaged Prefix-TEA.
    seed: of every random number.
  """

  tail_fraction: float = 0.25
  budget: int = 128
  order: int = 2
  fractions: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
  larger_fractions: tuple[float, ...] = (0.25, 0.4375, 0.625, 0.8125, 1.0)
  objective: Literal["norm", "variance"] = "norm"
  subset_order: int = 1
  subset_fractions: tuple[float, ...] = (0.5, 1.0)
  num_orders: int = 16
  orders: Literal["reversed", "independent"] = "reversed"
  scale_floor: float = 1e-12
  score: Literal["sin_cos", "tanh_cos", "tanh_bump"] = "sin_cos"
  num_rollouts: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048, 4096)
  prefix_num_rollouts: tuple[int, ...] = (256, 512, 1024, 2048, 4096)
  trials: int = 16384
  subset_trials: int = 4096
  prefix_rollouts: int = 1 << 25
  subset_rollouts: int = 1 << 23
  seed: int = 0

  def __post_init__(self) -> None:
    tails.tail_constants(self.tail_fraction, self.budget)
    for name in ("trials", "subset_trials"):
      if getattr(self, name) < 8:
        raise ValueError(f"{name}={getattr(self, name)} gives no standard error; use 8 or more.")
    for cell in diagnostic_cells(self):
      cell_sizes(self, cell)


class Cell(NamedTuple):
  """One estimator at one group size."""

  estimator: str
  num_rollouts: int


def diagnostic_cells(config: DiagnosticConfig) -> list[Cell]:
  """The cells of a run, the slow ones first so that two workers finish together."""
  cells = []
  for estimator in ESTIMATORS:
    grid = config.prefix_num_rollouts if estimator in PREFIX_ESTIMATORS else config.num_rollouts
    cells += [Cell(estimator, m) for m in grid]
  cost = {"subset_averaged": 4, "prefix": 1, "prefix_larger": 1, "tea": 1, "tail_influence": 1}
  return sorted(cells, key=lambda cell: -cell.num_rollouts * cost[cell.estimator])


def cell_trials(config: DiagnosticConfig, cell: Cell) -> int:
  """Groups that a cell simulates."""
  if cell.estimator in PREFIX_ESTIMATORS:
    share = 1 if cell.estimator == "prefix" else 2
    return max(config.trials, config.prefix_rollouts // (share * cell.num_rollouts))
  if cell.estimator == "subset_averaged":
    return max(config.subset_trials, config.subset_rollouts // cell.num_rollouts)
  return config.trials


def prefix_options(config: DiagnosticConfig, estimator: str) -> tuple[int, tuple[float, ...]]:
  if estimator == "subset_averaged":
    return config.subset_order, config.subset_fractions
  return config.order, config.fractions if estimator == "prefix" else config.larger_fractions


def cell_sizes(config: DiagnosticConfig, cell: Cell) -> tuple[tuple[int, ...], np.ndarray]:
  """Sizes of the samples that fit the tails of an estimator, and the weights of their terms."""
  if cell.estimator in ("tea", "tail_influence"):
    return (cell.num_rollouts,), np.ones(1)
  order, fractions = prefix_options(config, cell.estimator)
  total = cell.num_rollouts // 2 if cell.estimator in PREFIX_ESTIMATORS else cell.num_rollouts
  sizes = tails.compatible_prefixes(total, config.tail_fraction, fractions)
  return sizes, tails.cancellation_weights(sizes, order, objective=config.objective)


def cell_settings(config: DiagnosticConfig, cell: Cell) -> dict[str, Any]:
  """The settings on which a cell depends, and no others: what a stored result is valid for."""
  fields = ["tail_fraction", "budget", "scale_floor", "score", "seed"]
  if cell.estimator not in ("tea", "tail_influence"):
    fields.append("objective")
  settings = {name: getattr(config, name) for name in fields}
  if "objective" in fields:
    settings["order"], settings["fractions"] = prefix_options(config, cell.estimator)
  if cell.estimator == "subset_averaged":
    settings["num_orders"] = config.num_orders
    if config.orders != "reversed":  # cells stored before there was a choice stay valid
      settings["orders"] = config.orders
  return {**settings, **cell._asdict(), "trials": cell_trials(config, cell), "schema": _SCHEMA}


def cell_name(config: DiagnosticConfig, cell: Cell) -> str:
  """File name of a cell: readable, and different for different settings."""
  settings = json.dumps(cell_settings(config, cell), sort_keys=True)
  digest = hashlib.sha256(settings.encode()).hexdigest()[:12]
  return f"{cell.estimator}-{cell.num_rollouts}-{digest}.json"
