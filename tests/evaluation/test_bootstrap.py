"""Bootstrap over prompts: pairing, coverage, degenerate cases; win / tie / loss."""

import numpy as np
import pytest
from scipy import stats

from tea_jax.evaluation.bootstrap import (
  Interval,
  paired_bootstrap,
  pooled_bootstrap,
  prompt_bootstrap,
  seed_interval,
  win_tie_loss,
)

RNG = np.random.default_rng(0)


def test_interval_matches_percentiles_computed_by_hand():
  values = RNG.normal(size=40)
  indices = np.random.default_rng(5).integers(40, size=(1000, 40))
  means = values[indices].mean(axis=1)
  interval = prompt_bootstrap(values, seed=5)
  np.testing.assert_allclose(
    [interval.low, interval.high], np.quantile(means, [0.025, 0.975]), atol=0.03
  )
  np.testing.assert_allclose(interval.estimate, values.mean())


def test_budgets_share_the_resampled_prompts():
  values = RNG.normal(size=(30, 1))
  repeated = prompt_bootstrap(np.concatenate([values, 2 * values + 1, values], axis=1))
  np.testing.assert_allclose(repeated.low[1], 2 * repeated.low[0] + 1)
  np.testing.assert_allclose(repeated.high[2], repeated.high[0])


def test_pairing_cancels_the_difficulty_of_prompts():
  difficulty = RNG.normal(scale=10.0, size=50)
  gain = RNG.normal(loc=0.5, scale=0.3, size=50)
  paired = paired_bootstrap(difficulty + gain, difficulty)
  np.testing.assert_allclose(paired.estimate, gain.mean())
  assert 0.3 < paired.low < paired.high < 0.7
  assert paired.excludes_zero


def test_difference_of_a_policy_with_itself_is_zero():
  values = RNG.normal(size=(20, 3))
  interval = paired_bootstrap(values, values)
  for end in (interval.estimate, interval.low, interval.high):
    np.testing.assert_array_equal(end, np.zeros(3))
  assert not interval.excludes_zero.any()


def test_interval_covers_the_mean_about_as_often_as_it_says():
  covered = 0
  for trial in range(300):
    values = np.random.default_rng(trial).normal(size=40)
    interval = prompt_bootstrap(values, num_resamples=300, seed=trial)
    covered += interval.low <= 0 <= interval.high
  assert 0.90 <= covered / 300 <= 0.98


@pytest.mark.parametrize("method", ["percentile", "basic", "BCa"])
def test_one_prompt_or_no_spread_gives_the_point(method):
  assert prompt_bootstrap(np.array([1.5]), method=method) == Interval(1.5, 1.5, 1.5)
  mixed = prompt_bootstrap(np.array([[1.0, 2.0], [1.0, 4.0], [1.0, 9.0]]), method=method)
  assert (mixed.low[0], mixed.high[0]) == (1.0, 1.0)
  assert mixed.low[1] < 5.0 < mixed.high[1]


def test_the_seed_fixes_the_interval():
  values = RNG.normal(size=25)
  assert prompt_bootstrap(values, seed=3) == prompt_bootstrap(values, seed=3)
  assert prompt_bootstrap(values, seed=3) != prompt_bootstrap(values, seed=4)


def test_pooling_averages_seeds_within_a_prompt():
  values, baseline = RNG.normal(size=(2, 3, 40, 2))
  pooled = pooled_bootstrap(values, baseline, seed=1)
  plain = prompt_bootstrap((values - baseline).mean(axis=0), seed=1)
  np.testing.assert_array_equal(pooled.low, plain.low)


def test_resampling_seeds_shows_the_spread_between_runs():
  runs = np.array([-1.0, 0.0, 1.0])[:, None] + np.zeros((3, 30))
  runs += RNG.normal(scale=0.01, size=(3, 30))
  narrow = pooled_bootstrap(runs, np.zeros_like(runs))
  wide = pooled_bootstrap(runs, np.zeros_like(runs), resample_seeds=True)
  assert narrow.high - narrow.low < 0.05
  assert wide.high - wide.low > 0.5
  np.testing.assert_allclose(wide.estimate, narrow.estimate)


def test_resampling_one_seed_is_the_percentile_interval_over_prompts():
  run = RNG.normal(size=40)
  again = {"num_resamples": 20000, "seed": 1}
  resampled = pooled_bootstrap(run[None], np.zeros((1, 40)), resample_seeds=True, **again)
  indices = np.random.default_rng(2).integers(40, size=(20000, 40))
  by_hand = np.quantile(run[indices].mean(axis=1), [0.025, 0.975])
  error = run.std() / np.sqrt(40)  # a 90 % interval ends 0.3 of it further in
  np.testing.assert_allclose([resampled.low, resampled.high], by_hand, atol=0.15 * error)


def test_interval_over_runs_is_the_one_of_a_t_test():
  runs = np.random.default_rng(0).normal(0.3, size=(5, 3))
  interval = seed_interval(runs)
  expected = stats.ttest_1samp(runs, 0.0).confidence_interval(0.95)
  np.testing.assert_allclose(interval.estimate, runs.mean(axis=0))
  np.testing.assert_allclose(interval.low, expected.low)
  np.testing.assert_allclose(interval.high, expected.high)


def test_one_run_says_nothing_of_others():
  interval = seed_interval(np.array([[1.0, -2.0]]))
  np.testing.assert_array_equal(interval.low, [1.0, -2.0])
  assert not interval.excludes_zero.any()
  for values in (np.zeros((0, 2)), np.array([1.0, np.nan])):
    with pytest.raises(ValueError, match="finite"):
      seed_interval(values)
  with pytest.raises(ValueError, match="confidence=1"):
    seed_interval(np.ones(2), confidence=1)


def test_bad_inputs_are_refused():
  with pytest.raises(ValueError, match="same prompts"):
    paired_bootstrap(np.zeros(3), np.zeros(4))
  with pytest.raises(ValueError, match="not finite"):
    prompt_bootstrap(np.array([1.0, np.nan]))
  with pytest.raises(ValueError, match="confidence=1"):
    prompt_bootstrap(np.zeros(3), confidence=1)
  with pytest.raises(ValueError, match="equal shapes"):
    pooled_bootstrap(np.zeros((2, 3)), np.zeros((3, 3)))


def test_win_tie_loss_counts_prompts():
  result = win_tie_loss(np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.0, 2.0, 5.0, 4.0 + 5e-7]))
  assert (result.win, result.tie, result.loss) == (0.25, 0.5, 0.25)
  assert str(result) == "25.0/50.0/25.0"
  assert win_tie_loss(np.ones(2), np.array([0.95, 1.2]), tolerance=0.1).tie == 0.5
  with pytest.raises(ValueError, match="one value a prompt"):
    win_tie_loss(np.zeros((2, 2)), np.zeros((2, 2)))
  with pytest.raises(ValueError, match="finite"):
    win_tie_loss(np.array([np.nan]), np.zeros(1))


def test_interval_prints_with_its_ends():
  assert f"{Interval(0.5, -0.25, 1.0):+.2f}" == "+0.50 [-0.25, +1.00]"
