"""Scaling laws against numpy's form of the published algorithm, known laws and enumeration."""

import itertools

import hypothesis
import hypothesis.extra.numpy
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from tea_jax.scaling import (
  best_of_n_interval,
  fit_gaussian_tail,
  fit_pareto_tail,
  predict_best_of_n,
)
from tea_jax.tail import expected_maximum

BUDGETS = (1, 2, 64, 128, 10_000)
TAIL_LAWS = ("gaussian_tail", "pareto_tail", "blend")


def released(rewards, budget, alpha=0.2):
  """The released algorithm, one prompt at a time, in float64."""
  z = stats.norm.ppf(1 - alpha)
  mills = stats.norm.pdf(z) / alpha
  threshold = np.percentile(rewards, 100 * (1 - alpha))
  tail = rewards[rewards >= threshold]
  if len(tail) < 2 or np.var(tail) == 0:
    return rewards.max()
  scale = np.sqrt(np.var(tail, ddof=1) / (1 + z * mills - mills**2))
  return tail.mean() - scale * mills + scale * stats.norm.ppf(1 - 1 / budget)


@pytest.mark.parametrize("size", [1, 2, 5, 20, 21, 35, 50, 101])
def test_quantile_coefficient_is_the_released_algorithm(size):
  rng = np.random.default_rng(size)
  rewards = np.stack([rng.normal(3, 2, size), np.round(rng.normal(0, 1.5, size))])
  predicted = predict_best_of_n(rewards, (64, 300), coefficient="quantile")
  for row, values in zip(rewards, np.asarray(predicted), strict=True):
    np.testing.assert_allclose(values, [released(row, 64), released(row, 300)], rtol=2e-5)


def test_golden_prediction():
  # Tail {4, 6}: mean 5, variance 2, so scale = sqrt(2 / 0.218642561594...) = 3.02445859...
  rewards = jnp.array([0.0, 1.0, 1.0, 2.0, 2.0, 2.0, 3.0, 3.0, 4.0, 6.0])
  fit = fit_gaussian_tail(rewards)
  np.testing.assert_allclose([fit.scale, fit.loc], [3.0244586, 0.7663338], rtol=1e-6)
  predicted = predict_best_of_n(rewards, (128,))[0]
  np.testing.assert_allclose(predicted, 0.7663338 + 3.0244586 * 2.5945974, rtol=1e-6)


def test_many_draws_recover_location_and_scale():
  rewards = 3.0 + 2.0 * jax.random.normal(jax.random.key(0), (400_000,))
  fit = fit_gaussian_tail(rewards)
  np.testing.assert_allclose([fit.loc, fit.scale], [3.0, 2.0], atol=0.02)


def test_many_draws_recover_a_pareto_tail():
  uniform = jax.random.uniform(jax.random.key(0), (400_000,))
  for shape in (-0.3, 0.0001, 0.3):
    rewards = ((1 - uniform) ** -shape - 1) / shape
    fit = fit_pareto_tail(rewards)
    threshold = (0.2**-shape - 1) / shape
    found = [fit.threshold, fit.shape, fit.scale]
    np.testing.assert_allclose(found, [threshold, shape, 1 + shape * threshold], atol=0.03)


@pytest.mark.parametrize("shape", [-0.3, 0.2])
def test_pareto_prediction_is_the_expected_maximum_of_its_law(shape):
  rng = np.random.default_rng(0)
  rewards = np.sort(stats.genpareto(shape).rvs(200, random_state=rng))
  fit = jax.tree.map(float, fit_pareto_tail(rewards))
  below = rewards[rewards < fit.threshold]
  law = stats.genpareto(fit.shape, scale=fit.scale)
  for budget, predicted in zip(
    (1, 3, 64, 1000), predict_best_of_n(rewards, (1, 3, 64, 1000), law="pareto_tail"), strict=True
  ):
    # E max = threshold + integral of P(max > x) above it, less the shortfall below.
    above, _ = integrate.quad(lambda y: 1 - (1 - 0.2 * law.sf(y)) ** budget, 0, np.inf, limit=500)  # noqa: B023
    ranks = np.arange(len(below) + 1) / len(below)
    short = np.sum(np.diff(ranks**budget) * (below - fit.threshold)) * 0.8**budget
    np.testing.assert_allclose(predicted, fit.threshold + above + short, rtol=2e-4)


def test_empirical_law_matches_enumeration():
  rewards = np.random.default_rng(0).normal(size=7)
  for budget, value in zip(
    range(1, 8), predict_best_of_n(rewards, range(1, 8), law="empirical"), strict=True
  ):
    subsets = [max(chosen) for chosen in itertools.combinations(rewards, budget)]
    np.testing.assert_allclose(value, np.mean(subsets), rtol=1e-5)


def test_empirical_law_keeps_its_precision_with_many_rollouts():
  rewards = np.random.default_rng(0).normal(size=2000)
  budgets = (1, 500, 1999, 2000)
  ordered = np.sort(rewards)
  weights = [stats.hypergeom(2000, np.arange(2000) + 1, n).pmf(n) for n in budgets]
  exact = [np.sum(np.diff(w, prepend=0) * ordered) for w in weights]
  np.testing.assert_allclose(predict_best_of_n(rewards, budgets, law="empirical"), exact, atol=1e-4)


@pytest.mark.parametrize("law", [*TAIL_LAWS, "empirical"])
def test_masked_rollouts_do_not_count(law):
  rng = np.random.default_rng(1)
  rewards = rng.normal(size=(3, 40)).astype(np.float32)
  where = rng.random((3, 40)) < 0.7
  masked = predict_best_of_n(np.where(where, rewards, 1e9), (1, 4, 20), law=law, where=where)
  for row in range(3):
    alone = predict_best_of_n(rewards[row][where[row]], (1, 4, 20), law=law)
    np.testing.assert_allclose(masked[row], alone, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_said_is_nan():
  rewards, where = jnp.ones((2, 5)), jnp.array([[False] * 5, [True] * 5])
  for law in TAIL_LAWS:
    values = np.asarray(predict_best_of_n(rewards, (2, 64), law=law, where=where))
    assert np.isnan(values[0]).all()
    np.testing.assert_array_equal(values[1], 1.0)
  few = predict_best_of_n(rewards[0], (3, 4), law="empirical", where=jnp.arange(5) < 3)
  np.testing.assert_array_equal(np.isnan(few), [False, True])


@pytest.mark.parametrize("law", TAIL_LAWS)
def test_without_spread_the_prediction_is_the_largest_reward(law):
  one_in_tail = jnp.array([0.0, 1.0, 2.0, 3.0])
  np.testing.assert_array_equal(predict_best_of_n(one_in_tail, (64,), law=law), 3.0)
  tied_tail = jnp.array([0.0, 1.0, 2.0, 3.0, 3.0, 3.0])
  np.testing.assert_array_equal(predict_best_of_n(tied_tail, (64,), law=law), 3.0)


groups = hypothesis.extra.numpy.arrays(
  np.float32, st.integers(5, 60).map(lambda m: (m,)), elements=st.floats(-8, 8, width=16)
)


@hypothesis.settings(max_examples=30, deadline=None)
@hypothesis.given(groups, st.sampled_from(TAIL_LAWS), st.floats(0.25, 8), st.floats(-16, 16))
def test_predictions_follow_shifts_and_scalings_and_grow_with_the_budget(
  rewards, law, scale, shift
):
  padded = np.concatenate([rewards, np.zeros(60 - len(rewards), np.float32)])
  where = np.arange(60) < len(rewards)  # one compiled shape
  plain = np.asarray(predict_best_of_n(padded, BUDGETS, law=law, where=where))
  moved = predict_best_of_n(scale * padded + shift, BUDGETS, law=law, where=where)
  size = 1 + np.abs(plain).max()
  if np.ptp(rewards) == 0 or np.min(np.diff(np.unique(rewards))) * scale > 1e-3:
    np.testing.assert_allclose(
      moved, scale * plain + shift, atol=1e-3 * (size * scale + abs(shift))
    )
  assert (np.diff(plain) >= -1e-4 * size).all()


def test_predictions_differentiate_and_batch():
  rewards = jax.random.normal(jax.random.key(0), (2, 3, 30))

  @jax.jit
  def predict(rewards):
    return predict_best_of_n(rewards, (8,), law="blend")

  gradient = jax.grad(lambda rewards: predict(rewards).sum())
  assert np.isfinite(gradient(rewards)).all()
  assert np.isfinite(gradient(jnp.ones((2, 3, 30)))).all()
  np.testing.assert_allclose(jax.vmap(predict)(rewards), predict(rewards), rtol=1e-5)


@pytest.mark.parametrize("size", [20, 100])
def test_interval_covers_the_truth_of_a_gaussian(size):
  rewards = 2.0 + 3.0 * jax.random.normal(jax.random.key(1), (400, size))
  low, high = best_of_n_interval(rewards, (128, 1000), key=jax.random.key(2), num_resamples=300)
  truth = np.array([2.0 + 3.0 * expected_maximum(n) for n in (128, 1000)])
  covered = np.mean((low <= truth) & (truth <= high), axis=0)
  # Standard error 0.011; what differs from the Gaussian fit is the threshold's interpolation.
  assert (np.abs(covered - 0.95) < 0.035).all(), covered


def test_interval_covers_the_truth_of_its_pareto_law():
  # The shape that the fit shrinks to, so that the law is its own.
  shape = -0.2316
  uniform = jax.random.uniform(jax.random.key(1), (400, 50))
  rewards = ((1 - uniform) ** -shape - 1) / shape
  low, high = best_of_n_interval(
    rewards, (128,), key=jax.random.key(2), num_resamples=300, law="pareto_tail"
  )
  # E (w^-shape - 1) / shape, w the smallest of 128 uniforms.
  truth, _ = integrate.quad(lambda w: (w**-shape - 1) / shape * stats.beta(1, 128).pdf(w), 0, 1)
  covered = float(np.mean((low[:, 0] <= truth) & (truth <= high[:, 0])))
  assert abs(covered - 0.95) < 0.04, covered


def test_interval_shrinks_to_the_prediction_without_spread():
  low, high = best_of_n_interval(jnp.ones((2, 20)), (64,), key=jax.random.key(0), num_resamples=10)
  np.testing.assert_array_equal(low, 1.0)
  np.testing.assert_array_equal(high, 1.0)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"law": "normal"}, "law='normal' is unknown"),
    ({"coefficient": "median"}, "coefficient='median' is unknown"),
    ({"budgets": (0,)}, "budget=0"),
    ({"budgets": ()}, "budgets is empty"),
    ({"budgets": (1,), "coefficient": "quantile"}, "budget=1 has no quantile"),
    ({"budgets": (11,), "law": "empirical"}, "budget=11 is more than the 10 rollouts"),
    ({"tail_fraction": 0.7}, "tail_fraction=0.7"),
  ],
)
def test_impossible_options_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    predict_best_of_n(jnp.arange(10.0), **{"budgets": (64,), **options})
  if options.get("law") != "empirical":
    with pytest.raises(ValueError, match=message):
      best_of_n_interval(jnp.arange(10.0), key=jax.random.key(0), **{"budgets": (64,), **options})
