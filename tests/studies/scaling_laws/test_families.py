"""Families of known tails: draws, quantiles and maxima agree."""

import numpy as np
import pytest
from scipy import stats

from tea_jax.studies.scaling_laws.families import FAMILIES
from tea_jax.tail import expected_maximum

BY_NAME = {family.name: family for family in FAMILIES}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_scale_is_one_and_maxima_are_those_of_draws(family):
  low, high = family.at_survival(np.array([stats.norm.cdf(1.0), stats.norm.sf(1.0)]))
  np.testing.assert_allclose(high - low, 2.0)
  maxima = family.draw(np.random.default_rng(0), (4000, 20)).max(axis=1)
  error = 4 * maxima.std() / np.sqrt(len(maxima))
  assert abs(maxima.mean() - family.expected_maximum(20)) < error


def test_gaussian_maxima_are_the_known_ones():
  found = [BY_NAME["Gaussian"].expected_maximum(n) for n in (64, 10_000)]
  np.testing.assert_allclose(found, [expected_maximum(64), expected_maximum(10_000)], rtol=1e-6)


def test_tail_indices_are_those_of_the_maxima():
  """Maxima grow like N^index for positive, and approach the end like N^index for negative ones."""
  for name in ("Student t2", "Student t5"):
    growth = BY_NAME[name].expected_maximum(10**7) / BY_NAME[name].expected_maximum(10**6)
    assert abs(np.log10(growth) - BY_NAME[name].tail_index) < 0.02
  for name in ("beta(2, 2)", "beta(2, 5)"):
    end = BY_NAME[name].at_survival(np.array(0.0))
    gaps = [end - BY_NAME[name].expected_maximum(n) for n in (10**6, 10**7)]
    assert abs(np.log10(gaps[1] / gaps[0]) - BY_NAME[name].tail_index) < 0.02
