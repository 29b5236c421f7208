"""Reward distributions with tails from bounded to heavy, on which laws can be judged."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from scipy import stats

# Half the distance between a normal's quantiles at these levels is its standard deviation. Heavy
# tails may have no standard deviation, but they have quantiles.
_LEVELS = (stats.norm.sf(1.0), stats.norm.cdf(1.0))


@dataclasses.dataclass(frozen=True)
class Family:
  """A reward distribution, in units of half the distance between its 16 % and 84 % quantiles.

  Attributes:
    name: for tables.
    tail_index: of the limit law of its maximum: < 0 bounded, 0 light, > 0 a power law.
    survival_quantile: w -> x with P(X > x) = w, before it is brought to unit scale.
  """

  name: str
  tail_index: float
  survival_quantile: Callable[[np.ndarray], np.ndarray]

  def at_survival(self, survival: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """x with P(X > x) = `survival`, in units of the scale."""
    low, high = self.survival_quantile(np.array([_LEVELS[1], _LEVELS[0]]))
    return self.survival_quantile(np.asarray(survival, np.float64)) / ((high - low) / 2)

  def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Float[np.ndarray, "..."]:
    """Independent draws."""
    return self.at_survival(1.0 - rng.random(shape))

  def expected_maximum(self, budget: int) -> float:
    """Exact E max of `budget` draws, by quadrature over the survival of the maximum."""
    nodes, weights = np.polynomial.legendre.leggauss(400)
    s = (nodes + 1.0) / 2.0
    # P(W < w) = s^4 for W the smallest of N uniforms: power-law tails become smooth in s.
    survival = -np.expm1(np.log1p(-(s**4)) / budget)
    return float(np.sum(weights * 2.0 * s**3 * self.at_survival(survival)))


def _two_modes(survival: np.ndarray) -> np.ndarray:
  """Quantiles of 0.7 N(-1.5, 0.6^2) + 0.3 N(1.5, 0.6^2)."""

  grid = np.linspace(-7.0, 8.0, 6001)
  upper = 0.7 * stats.norm.sf(grid, -1.5, 0.6) + 0.3 * stats.norm.sf(grid, 1.5, 0.6)
  return np.interp(-np.log(survival), -np.log(upper), grid)


FAMILIES = (
  Family("beta(2, 2)", -0.5, lambda w: stats.beta.isf(w, 2, 2)),
  Family("beta(2, 5)", -0.2, lambda w: stats.beta.isf(w, 2, 5)),
  Family("Gaussian", 0.0, stats.norm.isf),
  Family("two modes", 0.0, _two_modes),
  Family("Gumbel", 0.0, stats.gumbel_r.isf),
  Family("Student t5", 0.2, lambda w: stats.t.isf(w, 5)),
  Family("Student t2", 0.5, lambda w: stats.t.isf(w, 2)),
)
