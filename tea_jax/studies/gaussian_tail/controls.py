"""Exact expectations on the Gaussian-tail model: what is integrated is not left to sampling.

Three tools, each exact for the model r ~ N(0, 1), so that none of them adds bias:

- the evaluation half of a cross-fitted estimator is integrated out given the fitted tail
  (Rao-Blackwell), `expected_gradient`;
- functions of the fitted tail whose mean is known, to be subtracted with any coefficient
  (control variates), `tail_controls`;
- the coefficients, fitted on one half of the trials and used on the other, `controlled_mean`.

All in float64 on the host.

Source: arXiv 2605.10716, Appendix E (the first; the others only reduce noise further).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from scipy import special

from tea_jax.tail import expected_maximum, tail_constants, tail_count

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(48)
# The density beyond is 1e-20 of its largest value.
_END = 9.5
# Regressions are only fitted where there are this many trials for each coefficient.
_TRIALS_PER_CONTROL = 20
_DEGREE = 4


def _density(values: np.ndarray) -> np.ndarray:
  return np.exp(-0.5 * np.square(values)) / np.sqrt(2.0 * np.pi)


def expected_gradient(
  tails: Float[np.ndarray, "*batch 3"],
  score: Callable[[np.ndarray], np.ndarray],
  *,
  tail_fraction: float,
  budget: int,
) -> Float[np.ndarray, "*batch dim"]:
  """E[psi(r; eta) s(r)] over r ~ N(0, 1) for given tails eta, by Gauss-Legendre quadrature.

  The integrand vanishes below the threshold and is smooth above, so that 48 nodes reach rounding.

  Args:
    tails: `[..., 3]` threshold, mean, scale; thresholds below 9.5.
    score: s, maps `[...]` to `[..., d]`.
    tail_fraction: alpha.
    budget: N.

  Returns:
    `[..., d]`, float64.
  """
  curvature = tail_constants(tail_fraction, budget).curvature
  threshold, mean, scale = (tails[..., i, None].astype(np.float64) for i in range(3))
  half_width = (_END - threshold) / 2.0
  values = threshold + half_width * (_NODES + 1.0)
  shaped = values - threshold
  shaped = shaped + curvature / (2.0 * scale) * (
    np.square(values - mean) - np.square(threshold - mean)
  )
  weights = half_width * _WEIGHTS * _density(values) / tail_fraction
  return np.einsum("...n,...nd->...d", weights * shaped, score(values))


def influence_gradient(
  score: Callable[[np.ndarray], np.ndarray], *, budget: int
) -> Float[np.ndarray, "dim"]:
  """E[N (E[max(r, M_{N-1}) | r] - c_N) s(r)] over r ~ N(0, 1), by the trapezoidal rule.

  Args:
    score: s, maps `[...]` to `[..., d]`.
    budget: N >= 2.

  Returns:
    `[d]`, float64.
  """
  grid, step = np.linspace(-12.0, 12.0, 24001, retstep=True)
  survival = -np.expm1((budget - 1) * special.log_ndtr(grid))
  # h(u) = u + integral from u on of (1 - Phi^(N-1)).
  area = np.concatenate([[0.0], np.cumsum((survival[1:] + survival[:-1]) * step / 2.0)])
  slope = np.exp((budget - 1) * special.log_ndtr(grid) - 0.5 * grid**2) / np.sqrt(2.0 * np.pi)
  # Second order of the trapezoidal cumulative sum: -step^2/12 (f'(end) - f'(start)).
  correction = step**2 / 12.0 * (budget - 1) * slope * np.exp(-special.log_ndtr(grid))
  best = grid + (area[-1] - area) - correction
  influence = budget * (best - expected_maximum(budget))
  return (influence * _density(grid) * step) @ score(grid)


def order_statistic_moments(
  num_rollouts: int, count: int
) -> tuple[float, float, Float[np.ndarray, "5"]]:
  """Mean, standard deviation and standardised moments of an order statistic of N(0, 1).

  By the trapezoidal rule on its density, which is analytic: it converges to rounding.

  Args:
    num_rollouts: n, the number of draws.
    count: which one, 1 for the largest.

  Returns:
    Mean, standard deviation, and E u^0..E u^4 of the standardised order statistic u.
  """
  grid = np.linspace(-12.0, 12.0, 48001)
  log_density = (
    (count - 1) * special.log_ndtr(-grid)
    + (num_rollouts - count) * special.log_ndtr(grid)
    - 0.5 * grid**2
  )
  weights = np.exp(log_density - log_density.max())
  weights /= weights.sum()
  mean = float(weights @ grid)
  deviation = float(np.sqrt(weights @ np.square(grid - mean)))
  standard = (grid - mean) / deviation
  return mean, deviation, np.array([weights @ standard**power for power in range(5)])


def _excess_moments(
  threshold: Float[np.ndarray, "trials"],
) -> tuple[np.ndarray, np.ndarray, dict[tuple[int, int], np.ndarray]]:
  """Mean, variance and E x^i y^j of N(0, 1) above a threshold: x its deviation, y = x^2 - E x^2."""
  nodes, weights = np.polynomial.legendre.leggauss(32)
  half_width = (_END - threshold[:, None]) / 2.0
  values = threshold[:, None] + half_width * (nodes + 1.0)
  density = _density(values) * weights
  density /= density.sum(axis=-1, keepdims=True)
  mean = np.sum(density * values, axis=-1)
  x = values - mean[:, None]
  variance = np.sum(density * x**2, axis=-1)
  y = x**2 - variance[:, None]
  moments = {}
  weighted_x = density
  for i in range(_DEGREE + 1):
    weighted = weighted_x
    for j in range(_DEGREE + 1 - i):
      if i + j >= 2:
        moments[i, j] = np.sum(weighted, axis=-1)
      weighted = weighted * y
    weighted_x = weighted_x * x
  return mean, variance, moments


def _moments_of_means(
  moments: dict[tuple[int, int], np.ndarray], draws: int
) -> dict[tuple[int, int], np.ndarray]:
  """E a^i b^j for the means a, b of `draws` independent pairs with E x^i y^j = `moments`."""
  result = {(0, 1): np.zeros(1), (1, 0): np.zeros(1)}
  xx, xy, yy = moments[2, 0], moments[1, 1], moments[0, 2]
  pairings = {
    (4, 0): 3.0 * xx * xx,
    (3, 1): 3.0 * xx * xy,
    (2, 2): xx * yy + 2.0 * xy * xy,
    (1, 3): 3.0 * xy * yy,
    (0, 4): 3.0 * yy * yy,
  }
  for powers, moment in moments.items():
    total = moment + (draws - 1) * pairings[powers] if powers in pairings else moment
    result[powers] = total / float(draws) ** (sum(powers) - 1)
  return result


def tail_controls(
  tails: Float[np.ndarray, "trials 3"], num_rollouts: int, tail_fraction: float
) -> Float[np.ndarray, "trials controls"]:
  """Functions of the empirical tail of `num_rollouts` draws of N(0, 1) with expectation zero.

  The threshold q is an order statistic, whose moments are integrals. Given q, the k - 1 rewards
  above are independent draws of N(0, 1) truncated at q: the joint moments of their mean and mean
  square, of which the empirical mean and scale are functions, are known. With u, a, b the
  standardised deviations of threshold, mean and mean square, the controls are all u^i a^j b^l of
  degree 1 to 4, each minus its expectation (given q, where j + l > 0).

  Args:
    tails: `[trials, 3]` threshold, mean, scale of the k largest.
    num_rollouts: n, the size of the samples.
    tail_fraction: alpha; k = ceil(alpha n).

  Returns:
    `[trials, 34]`, float64; only the 4 powers of u where the tail has fewer than 4 rewards.
  """
  count = tail_count(num_rollouts, tail_fraction)
  threshold, mean, scale = np.asarray(tails, np.float64).T
  center, deviation, powers_of_u = order_statistic_moments(num_rollouts, count)
  u = (threshold - center) / deviation
  columns = [u**i - powers_of_u[i] for i in range(1, _DEGREE + 1)]
  draws = count - 1
  if draws < 3:
    return np.stack(columns, axis=-1)

  expected_mean, variance, moments = _excess_moments(threshold)
  first = (count * mean - threshold) / draws
  second = (count * (scale**2 + mean**2) - threshold**2) / draws
  a = first - expected_mean
  b = second - 2.0 * expected_mean * first + expected_mean**2 - variance
  known = _moments_of_means(moments, draws)
  unit_a, unit_b = np.sqrt(known[2, 0]), np.sqrt(known[0, 2])
  for (j, l), expectation in known.items():
    product = (a**j * b**l - expectation) / (unit_a**j * unit_b**l)
    columns += [u**i * product for i in range(_DEGREE - j - l + 1)]
  return np.stack(columns, axis=-1)


def controlled_mean(
  response: Float[np.ndarray, "trials dim"],
  features: Float[np.ndarray, "trials controls"] | None,
) -> tuple[Float[np.ndarray, "dim"], Float[np.ndarray, "dim dim"]]:
  """Mean of `response` with the noise that zero-mean `features` explain taken out.

  The coefficients used on the even trials are fitted on the odd ones and conversely, so that they
  are independent of what they multiply: unbiased for any number of trials.

  Args:
    response: `[trials, d]` independent rows.
    features: `[trials, p]`, rows with expectation zero, or None. Not used when there are fewer
      than 20 trials for each of them.

  Returns:
    The mean `[d]` and the covariance `[d, d]` of its noise.
  """
  residuals = np.array(response, np.float64)
  trials = len(residuals)
  if features is not None and 0 < features.shape[1] * _TRIALS_PER_CONTROL <= trials:
    folds = (slice(0, None, 2), slice(1, None, 2))
    for fit, use in (folds, folds[::-1]):
      design = np.concatenate([np.ones_like(features[fit, :1]), features[fit]], axis=-1)
      coefficients = np.linalg.lstsq(design, response[fit], rcond=None)[0][1:]
      residuals[use] -= features[use] @ coefficients
  mean = residuals.mean(axis=0)
  centred = residuals - mean
  return mean, centred.T @ centred / (trials - 1) / trials
