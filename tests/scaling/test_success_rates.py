"""pass@N beyond the trials, against enumeration, quadrature and draws from a known law."""

import itertools

import numpy as np
import pytest
from scipy import integrate, stats

from tea_jax.scaling import fit_success_rates, predict_pass_at_n


def test_up_to_the_trials_it_matches_enumeration():
  for successes in range(6):
    outcomes = [1] * successes + [0] * (5 - successes)
    predicted = predict_pass_at_n(np.array([successes]), 5, range(1, 6))[0]
    for budget in range(1, 6):
      draws = [any(chosen) for chosen in itertools.combinations(outcomes, budget)]
      np.testing.assert_allclose(predicted[budget - 1], np.mean(draws), atol=1e-12)


def test_beyond_the_trials_it_is_the_posterior_mean():
  successes = np.array([0, 1, 3, 0, 2, 8])
  alpha, beta = fit_success_rates(successes, 10)
  predicted = predict_pass_at_n(successes, 10, (50,))[:, 0]
  for count, value in zip(successes, predicted, strict=True):
    posterior = stats.beta(alpha + count, beta + 10 - count)
    exact, _ = integrate.quad(lambda p: (1 - (1 - p) ** 50) * posterior.pdf(p), 0, 1, limit=200)  # noqa: B023
    np.testing.assert_allclose(value, exact, rtol=1e-6)


def test_fit_maximises_the_marginal_likelihood():
  rng = np.random.default_rng(0)
  successes = rng.binomial(12, rng.beta(0.7, 3.0, 300))
  best = fit_success_rates(successes, 12)
  value = stats.betabinom(12, *best).logpmf(successes).sum()
  for alpha, beta in itertools.product((0.9, 1.1), repeat=2):
    other = stats.betabinom(12, best.alpha * alpha, best.beta * beta)
    assert other.logpmf(successes).sum() <= value + 1e-6
  assert abs(best.alpha - 0.7) < 0.2
  assert abs(best.beta - 3.0) < 0.9


def test_prediction_is_right_on_its_own_law():
  rng = np.random.default_rng(1)
  rates = rng.beta(0.5, 4.0, 2000)
  predicted = predict_pass_at_n(rng.binomial(8, rates), 8, (1, 8, 64, 512)).mean(axis=0)
  truth = [np.mean(1 - (1 - rates) ** n) for n in (1, 8, 64, 512)]
  np.testing.assert_allclose(predicted, truth, atol=0.02)


@pytest.mark.parametrize("count", [0, 4])
def test_prompts_that_all_fail_or_all_succeed_stay_within_bounds(count):
  predicted = predict_pass_at_n(np.full(10, count), 4, (4, 64, 10_000))
  assert ((predicted >= 0) & (predicted <= 1)).all()
  np.testing.assert_allclose(predicted[:, 0], count / 4)


def test_trials_may_differ_between_prompts():
  predicted = predict_pass_at_n(np.array([1, 1]), np.array([2, 20]), (2,))
  np.testing.assert_allclose(predicted[:, 0], [1.0, 0.1])


@pytest.mark.parametrize(("successes", "trials"), [([3], 2), ([-1], 2), ([0], 0), ([], 3)])
def test_impossible_counts_are_refused(successes, trials, unchecked):
  with pytest.raises(ValueError, match="successes"):
    predict_pass_at_n(np.array(successes), trials, (4,))
