"""What training for one budget is worth at another, and how good the diagonal approximation is.

The alignment coefficient is the cosine of two strategies' supervised weights over p uniform in
(0, 1); where those of two training budgets cross, the larger one begins to pay.

Source: arXiv 2604.24957, sections F.1 to F.3.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.optimize import brentq
from scipy.special import gammaln

_POINTS = 24


def alignment_coefficient(train_budget: float, test_budget: float) -> float:
  """Cosine of the Pass@N weights of two budgets.

  gamma = int w_train w_test dp / sqrt(int w_train^2 dp int w_test^2 dp),
  w_N(p) = N p (1 - p)^(N-1) / (1 - (1 - p)^N), over p in (0, 1)

  Args:
    train_budget, test_budget: N, at least 1; need not be whole.

  Returns:
    In (0, 1]; 1 where the budgets are equal.

  Raises:
    ValueError: if a budget is below 1 or not finite.

  Example:
    >>> round(alignment_coefficient(64, 32), 6), round(alignment_coefficient(16, 32), 6)
    (0.934388, 0.934335)
  """
  for name, budget in (("train_budget", train_budget), ("test_budget", test_budget)):
    if not 1 <= budget < math.inf:
      raise ValueError(f"{name}={budget} must be a number of samples, at least 1")
  p, measure = _quadrature(max(train_budget, test_budget))
  train, test = _pass_weight(p, train_budget), _pass_weight(p, test_budget)
  return float(measure @ (train * test) / np.sqrt((measure @ train**2) * (measure @ test**2)))


def crossover_budget(small: float, large: float) -> float:
  """Test budget from which training for `large` is better aligned than training for `small`.

  Close to sqrt(small * large).

  Raises:
    ValueError: unless 1 <= small < large.

  Example:
    >>> [round(crossover_budget(n, 4 * n), 4) for n in (1, 4, 16)]
    [1.9073, 7.9804, 31.9952]
  """
  if not 1 <= small < large < math.inf:
    raise ValueError(f"small={small} and large={large} must satisfy 1 <= small < large")

  def advantage(test_budget: float) -> float:
    return alignment_coefficient(large, test_budget) - alignment_coefficient(small, test_budget)

  root: Any = brentq(advantage, small, large, xtol=1e-12)
  return float(root)


def plurality_partials(
  probabilities: Float[np.ndarray, "K"], *, budget: int, target: int = 0
) -> Float[np.ndarray, "K"]:
  """a_j = N P(the target has most votes | N - 1 free votes and one for j), for every answer j.

  Partial derivatives of the target's probability to win by the probabilities of the answers. A
  tie for most votes is no win.

  Args:
    probabilities: `[K]`, of the answers; they sum to 1.
    budget: N votes.
    target: index of the answer that should win.

  Returns:
    `[K]`, none negative.

  Source: arXiv 2604.24957, eqs. 37, 65.
  """
  p = _distribution(probabilities, target)
  return np.array([budget * _target_wins(p, budget - 1, target, extra=j) for j in range(len(p))])


def plurality_success(
  probabilities: Float[np.ndarray, "K"], *, budget: int, target: int = 0
) -> float:
  """Probability that the target has strictly most of `budget` votes; see `plurality_partials`."""
  return _target_wins(_distribution(probabilities, target), budget, target, extra=None)


def diagonal_efficiency(
  partials: Float[np.ndarray, "K"], probabilities: Float[np.ndarray, "K"], *, target: int = 0
) -> float | None:
  """a / (a - C): what the diagonal weight a promises over what an update of the target gives.

  Where the other answers shrink in proportion, dS/dp = a - C with a the target's own partial and
  C = sum_{j != target} p_j / (1 - p) a_j >= 0: the diagonal overestimates, and this is at least 1.

  Args:
    partials: `[K]`, a_j of a strategy, e.g. `plurality_partials`.
    probabilities: `[K]`, of the answers.
    target: index of the answer that should win.

  Returns:
    The ratio, or None where dS/dp is not positive.

  Source: arXiv 2604.24957, section F.3, whose first version has a / (a + C); finite differences of
  S confirm a - C.
  """
  p = _distribution(probabilities, target)
  a = np.asarray(partials, np.float64)
  if a.shape != p.shape:
    raise ValueError(f"partials {a.shape} must have the shape of probabilities {p.shape}")
  others = np.arange(len(p)) != target
  rest = p[others].sum()
  correction = float(p[others] @ a[others] / rest) if rest > 0 else 0.0
  slope = float(a[target]) - correction
  return float(a[target]) / slope if slope > 0 else None


@functools.cache
def _quadrature(budget: float) -> tuple[np.ndarray, np.ndarray]:
  """Gauss-Legendre points and weights on panels that halve towards 0, to 1 / budget and below."""
  panels = math.ceil(math.log2(budget)) + 8
  edges = np.concatenate([[0.0], 2.0 ** np.arange(-panels, 1)])
  points, weights = np.polynomial.legendre.leggauss(_POINTS)
  middle, half = (edges[1:] + edges[:-1]) / 2, (edges[1:] - edges[:-1]) / 2
  return (
    (middle[:, None] + half[:, None] * points).ravel(),
    (half[:, None] * weights).ravel(),
  )


def _pass_weight(p: np.ndarray, budget: float) -> np.ndarray:
  log_failure = np.log1p(-p)
  return budget * p * np.exp((budget - 1) * log_failure) / -np.expm1(budget * log_failure)


def _distribution(probabilities: Sequence[float] | np.ndarray, target: int) -> np.ndarray:
  p = np.asarray(probabilities, np.float64)
  if p.ndim != 1 or (p < 0).any() or not math.isclose(p.sum(), 1, abs_tol=1e-9):
    raise ValueError(f"probabilities must be one distribution that sums to 1, got {p.tolist()}")
  if not 0 <= target < len(p):
    raise ValueError(f"target={target} must be the index of one of {len(p)} answers")
  return p


def _target_wins(p: np.ndarray, votes: int, target: int, *, extra: int | None) -> float:
  """Probability that the target has strictly most of `votes` free votes and one for `extra`."""
  # P(counts) = votes! prod_j p_j^n_j / n_j!, summed answer by answer over what others may hold.
  counts = np.arange(votes + 1)
  with np.errstate(divide="ignore"):
    powers = np.exp(np.where(counts == 0, 0, counts * np.log(p)[:, None]) - gammaln(counts + 1))
  total = 0.0
  for own in range(votes + 1):
    score = own + (extra == target)
    ways = np.zeros(votes + 1)
    ways[own] = powers[target, own]
    for j in range(len(p)):
      if j != target:
        most = score - 1 - (extra == j)
        allowed = np.where(counts <= most, powers[j], 0.0)
        ways = np.convolve(ways, allowed)[: votes + 1]
    total += ways[votes]
  return float(total * math.exp(math.lgamma(votes + 1)))
