import itertools
import math

import numpy as np
import pytest

from tea_jax.tail.order_statistics import (
  log_binomial,
  mean_subset_maximum,
  subset_maximum_weights,
)


def test_binomials_are_those_of_the_integers():
  table = [[math.comb(n, k) if k >= 0 else 0 for k in range(-1, 12)] for n in range(10)]
  found = np.exp(log_binomial(np.arange(10)[:, None], np.arange(-1, 12)))
  np.testing.assert_allclose(found, table, rtol=1e-12)


@pytest.mark.parametrize("budget", [1, 2, 3, 5])
def test_the_mean_maximum_is_that_of_all_subsets(budget):
  values = np.random.default_rng(0).normal(size=(2, 5))
  subsets = [values[:, list(chosen)].max(-1) for chosen in itertools.combinations(range(5), budget)]
  found = mean_subset_maximum(values, budget)
  np.testing.assert_allclose(found, np.mean(subsets, axis=0), rtol=1e-13)


@pytest.mark.parametrize("num_samples", [1, 2, 64, 5000])
def test_weights_are_probabilities_without_overflow(num_samples):
  for budget in {1, (num_samples + 1) // 2, num_samples}:
    weights = subset_maximum_weights(num_samples, budget)
    assert (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(), 1.0, rtol=1e-10)
    assert not weights[: budget - 1].any()


def test_subsets_larger_than_the_sample_are_refused():
  with pytest.raises(ValueError, match="budget=7 must lie between 1 and the 6"):
    subset_maximum_weights(6, 7)
