"""Maxima over the subsets of a sample, and the binomials that count the subsets.

Everything here is numpy in float64: weights are constants when a program is traced.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.special import gammaln


def log_binomial(n, k) -> np.ndarray:
  """log C(n, k) in float64, -inf outside 0 <= k <= n.

  Args:
    n, k: integers, numbers or arrays that broadcast.

  Example:
    >>> np.exp(log_binomial(5, [1, 2, 6])).round(6).tolist()
    [5.0, 10.0, 0.0]
  """
  n, k = np.broadcast_arrays(np.asarray(n, float), np.asarray(k, float))
  inside = (k >= 0) & (k <= n)
  safe_n, safe_k = np.where(inside, n, 0), np.where(inside, k, 0)
  value = gammaln(safe_n + 1) - gammaln(safe_k + 1) - gammaln(safe_n - safe_k + 1)
  return np.where(inside, value, -np.inf)


def subset_maximum_weights(num_samples: int, budget: int) -> Float[np.ndarray, "num_samples"]:
  """P(the i-th smallest of n is the maximum of a random subset of N) = C(i-1, N-1) / C(n, N).

  Args:
    num_samples: n.
    budget: N, in 1 ... n.

  Returns:
    `[n]`; 0 for the N - 1 smallest.

  Raises:
    ValueError: if N is not in 1 ... n.
  """
  if not 1 <= budget <= num_samples:
    raise ValueError(f"budget={budget} must lie between 1 and the {num_samples} samples")
  rank = np.arange(budget, num_samples + 1)
  log_weights = log_binomial(rank - 1, budget - 1) - log_binomial(num_samples, budget)
  return np.concatenate([np.zeros(budget - 1), np.exp(log_weights)])


def mean_subset_maximum(
  values: Float[np.ndarray, "*batch num_samples"], budget: int
) -> Float[np.ndarray, "*batch"]:
  """Mean of the maximum over all C(n, N) subsets of N of the n values: unbiased, least variance.

    sum_{i=N}^{n} C(i-1, N-1) / C(n, N) r_(i),   r_(1) <= ... <= r_(n)

  Args:
    values: `[..., n]` finite.
    budget: N, in 1 ... n.

  Returns:
    `[...]` float64.

  Raises:
    ValueError: if N is not in 1 ... n.

  Example:
    >>> maxima = mean_subset_maximum(np.array([3.0, 1.0, 2.0]), 2)  # of {1, 2}, {1, 3} and {2, 3}
    >>> round(float(maxima), 4)
    2.6667
  """
  weights = subset_maximum_weights(values.shape[-1], budget)
  return np.asarray(np.sort(values, axis=-1)[..., budget - 1 :] @ weights[budget - 1 :])
