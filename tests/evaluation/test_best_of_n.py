"""Best-of-N estimators against enumeration of every subset, and what they must satisfy."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tea_jax.evaluation.best_of_n import (
  best_of_n_exact,
  best_of_n_frontier,
  best_of_n_grouped,
  top_mean,
)

reward_tables = hnp.arrays(
  np.float64,
  st.tuples(st.integers(1, 3), st.integers(1, 7)),
  elements=st.sampled_from([-2.0, -0.35, 0.0, 0.35, 1.0, 3.5]) | st.floats(-5, 5),
)


@given(reward_tables)
@settings(max_examples=60, deadline=None)
def test_exact_estimator_is_the_mean_over_all_subsets(rewards):
  exact = best_of_n_exact(rewards)
  for budget in range(1, rewards.shape[1] + 1):
    subsets = list(itertools.combinations(range(rewards.shape[1]), budget))
    enumerated = np.mean([rewards[:, subset].max(axis=1) for subset in map(list, subsets)], axis=0)
    np.testing.assert_allclose(exact[:, budget - 1], enumerated, atol=1e-12)


def test_exact_estimator_is_unbiased_by_enumeration_of_all_samples():
  values, probabilities = np.array([0.0, 1.0, 4.0]), np.array([0.5, 0.3, 0.2])
  samples = np.array(list(itertools.product(range(3), repeat=4)))
  weight = probabilities[samples].prod(axis=1)
  for budget in (1, 2, 3, 4):
    expected = sum(
      probabilities[list(draw)].prod() * values[list(draw)].max()
      for draw in itertools.product(range(3), repeat=budget)
    )
    estimate = weight @ best_of_n_exact(values[samples], [budget])[:, 0]
    np.testing.assert_allclose(estimate, expected, rtol=1e-12)


def test_grouped_estimator_by_hand():
  rewards = np.array([[3.0, 1.0, 2.0, 5.0], [0.0, 0.0, -1.0, -2.0]])
  np.testing.assert_array_equal(best_of_n_grouped(rewards, 1), [2.75, -0.75])
  np.testing.assert_array_equal(best_of_n_grouped(rewards, 2), [4.0, -0.5])
  np.testing.assert_array_equal(best_of_n_grouped(rewards, 4), [5.0, 0.0])


def test_exact_is_the_average_of_grouped_over_all_orders():
  rewards = np.array([[3.0, 1.0, 2.0, 5.0, 5.0, -1.0]])
  orders = np.array(list(itertools.permutations(range(6))))
  for budget in (2, 3):
    grouped = best_of_n_grouped(rewards[0][orders], budget).mean()
    np.testing.assert_allclose(best_of_n_exact(rewards, [budget])[0, 0], grouped)


def test_exact_recovers_the_normal_expected_maximum_where_replacement_is_biased():
  rng = np.random.default_rng(0)
  rewards = rng.standard_normal((4000, 64))
  exact = best_of_n_exact(rewards, [16, 64]).mean(axis=0)
  np.testing.assert_allclose(exact, [1.7660, 2.3439], atol=0.03)
  replaced = np.take_along_axis(rewards, rng.integers(64, size=(4000, 64)), axis=1)
  assert replaced.max(axis=1).mean() < exact[1] - 0.1


def test_ends_of_the_frontier_are_mean_and_maximum():
  rewards = np.random.default_rng(1).normal(size=(5, 8))
  for method in ("grouped", "exact"):
    frontier = best_of_n_frontier(rewards, method=method)
    assert frontier.budgets.tolist() == [1, 2, 4, 8]
    np.testing.assert_allclose(frontier.at(1), rewards.mean(axis=1))
    np.testing.assert_allclose(frontier.at(8), rewards.max(axis=1))
    np.testing.assert_allclose(frontier.mean, frontier.per_prompt.mean(axis=0))


@given(reward_tables, st.floats(0.1, 5), st.floats(-5, 5))
@settings(max_examples=40, deadline=None)
def test_frontier_rises_and_follows_affine_changes_and_permutations(rewards, scale, shift):
  exact = best_of_n_exact(rewards)
  assert (np.diff(exact, axis=1) >= -1e-12).all()
  np.testing.assert_allclose(
    best_of_n_exact(scale * rewards + shift), scale * exact + shift, atol=1e-9
  )
  np.testing.assert_allclose(best_of_n_exact(rewards[:, ::-1]), exact, atol=1e-12)


def test_budgets_that_do_not_fit_are_refused():
  rewards = np.zeros((2, 6))
  with pytest.raises(ValueError, match="budget=4 does not divide the 6"):
    best_of_n_grouped(rewards, 4)
  with pytest.raises(ValueError, match="budget=7 must lie between 1 and the 6"):
    best_of_n_exact(rewards, [7])
  with pytest.raises(ValueError, match="budget 3 is not on the frontier"):
    best_of_n_frontier(rewards).at(3)
  with pytest.raises(ValueError, match="'grouped' or 'exact'"):
    best_of_n_frontier(rewards, [1], method="bootstrap")  # type: ignore


@pytest.mark.parametrize("function", [best_of_n_exact, best_of_n_frontier])
def test_not_finite_rewards_name_prompt_and_rollout(function, unchecked):
  rewards = np.zeros((3, 16))
  rewards[2, 5] = np.nan
  with pytest.raises(ValueError, match="prompt 2, rollout 5 is nan"):
    function(rewards)
  with pytest.raises(ValueError, match=r"\[prompts, completions\]"):
    function(np.zeros((4,)))


def test_unscored_completions_do_not_count_for_the_top_mean():
  rewards = np.array([[1.0, np.nan, 3.0], [np.nan, np.nan, np.nan]])
  assert top_mean(rewards, 2) == 2.0
  with pytest.raises(ValueError, match="no completion was scored"):
    top_mean(rewards[1:], 2)


def test_top_mean_is_the_mean_of_the_largest():
  rewards = np.array([[1.0, 9.0, 3.0, 7.0], [0.0, 0.0, 2.0, -5.0]])
  assert top_mean(rewards, top=2) == (8.0 + 1.0) / 2
  assert top_mean(rewards, top=4) == rewards.mean()
  rewards = np.random.default_rng(0).normal(size=(128, 32))
  np.testing.assert_allclose(top_mean(rewards), np.sort(rewards)[:, 22:].mean())
  with pytest.raises(ValueError, match="top=33"):
    top_mean(rewards, top=33)
