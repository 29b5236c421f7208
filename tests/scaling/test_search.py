"""Searches on problems whose laws are known: what they gain, and that they spend exactly N."""

import hypothesis
import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest

from tea_jax.scaling import (
  Schedule,
  TwoLevelGaussian,
  best_of_n,
  branching_best_of_n,
  mean_guided_search,
  scaling_law_search,
  search_schedule,
  ucb_search,
)
from tea_jax.scaling.decisions import choose_focus, choose_states, node_values, upper_bounds
from tea_jax.tail import expected_maximum

SEARCHES = (best_of_n, branching_best_of_n, mean_guided_search, scaling_law_search, ucb_search)


class Scripted:
  """Rewards `root` of the prompt's rollouts in order, `of_state(i)` of every one of a state's."""

  def __init__(self, root, of_state, ended=()):
    self.root, self.of_state, self.ended = np.asarray(root, float), of_state, set(ended)
    self.requests = []

  @property
  def num_prompts(self):
    return 1

  def draw(self, nodes, first, counts):
    self.requests.append(
      [(int(n), int(f), int(c)) for n, f, c in zip(nodes[0], first[0], counts[0], strict=True)]
    )
    rewards = np.full((*nodes.shape, counts.max()), np.nan)
    for slot, (node, start, count) in enumerate(self.requests[-1]):
      numbers = np.arange(start, start + count)
      rewards[0, slot, :count] = self.root[numbers] if node == 0 else self.of_state(node - 1)
    return rewards

  def extendable(self, num_rollouts):
    return np.array([[i not in self.ended for i in range(num_rollouts)]])


@pytest.mark.parametrize(
  ("budget", "expected"),
  [
    (5, (20, 2)),
    (100, (20, 2)),
    (200, (30, 3)),
    (300, (35, 4)),
    (500, (50, 5)),
    (1000, (65, 8)),
    (2000, (90, 11)),
    (10_000, (155, 32)),
  ],
)
def test_schedule_is_the_published_one(budget, expected):
  assert search_schedule(budget) == Schedule(*expected)


@pytest.mark.parametrize(("budget", "gain"), [(100, 0.34), (300, 0.40), (1000, 0.58)])
def test_search_beats_best_of_n_on_the_two_level_gaussian(budget, gain):
  found = scaling_law_search(TwoLevelGaussian(2000, seed=0), budget).best_reward
  plain = best_of_n(TwoLevelGaussian(2000, seed=1), budget).best_reward
  assert abs((found - plain).mean() - gain) < 0.10
  # The reference itself: N draws of N(0, 2).
  np.testing.assert_allclose(plain.mean(), np.sqrt(2) * expected_maximum(budget), atol=0.05)


def test_search_comes_closer_to_the_oracle_as_pilots_grow():
  """The oracle knows the candidates' means: regret of the choice alone, at one number of states."""
  regrets = []
  for samples in (10, 40, 160):
    source = TwoLevelGaussian(1000, seed=0)
    result = scaling_law_search(source, 2000, schedule=Schedule(samples, 4), states="first")
    means = np.take_along_axis(source.states, result.candidates[:, 1:] - 1, axis=1)
    chosen = np.take_along_axis(source.states, np.maximum(result.focus - 1, 0)[:, None], axis=1)
    on_state = result.focus > 0
    regrets.append((means.max(axis=1) - chosen[:, 0])[on_state].mean())
  assert regrets[0] > 1.5 * regrets[1] > 2.0 * regrets[2] > 0


budgets = st.one_of(st.integers(1, 60), st.integers(5, 2000))
schedules = st.one_of(st.none(), st.builds(Schedule, st.integers(1, 40), st.integers(0, 6)))


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(
  st.sampled_from([s for s in SEARCHES if s is not scaling_law_search]),
  budgets,
  schedules,
  st.sampled_from([0.0, 0.4, 1.0]),
  st.sampled_from([0.0, 0.3, 1.0]),
  st.integers(0, 99),
)
def test_exactly_n_different_rollouts_are_used(search, budget, schedule, ended, failed, seed):
  check_budget_is_spent(search, budget, schedule, ended, failed, seed)


@pytest.mark.parametrize("budget", [1, 5, 19, 59, 61, 997])
@pytest.mark.parametrize(("ended", "failed"), [(0.0, 0.0), (0.4, 0.3), (1.0, 1.0)])
def test_scaling_law_search_uses_exactly_n_different_rollouts(budget, ended, failed):
  check_budget_is_spent(scaling_law_search, budget, None, ended, failed, seed=0)
  check_budget_is_spent(scaling_law_search, budget, Schedule(7, 5), ended, failed, seed=1)


def check_budget_is_spent(search, budget, schedule, ended, failed, seed):
  source = TwoLevelGaussian(4, seed=seed, ended_share=ended, failed_share=failed)
  options = {} if search is best_of_n else {"schedule": schedule}
  result = search(source, budget, **options)
  assert result.rewards.shape == (4, budget)
  for nodes, rollouts in zip(result.nodes, result.rollouts, strict=True):
    assert (nodes >= 0).all()
    assert len(set(zip(nodes.tolist(), rollouts.tolist(), strict=True))) == budget
    for node in set(nodes.tolist()):
      assert sorted(rollouts[nodes == node]) == list(range((nodes == node).sum()))
  used = np.unique(result.nodes[result.nodes > 0])
  assert source.extendable(2000)[:, used - 1].any(axis=0).all()
  scored = ~np.isnan(result.rewards)
  np.testing.assert_array_equal(result.best >= 0, scored.any(axis=1))
  if scored.any(axis=1).all():
    np.testing.assert_array_equal(result.best_reward, np.nanmax(result.rewards, axis=1))


def test_phases_follow_the_released_code():
  root = [0.0, 5.0, 1.0, 4.0, *[0.0] * 100]
  source = Scripted(root, of_state=lambda i: {1: 2.0, 3: 6.0}[i])
  result = scaling_law_search(source, 30, schedule=Schedule(4, 2))
  # Pilots, the two best as states, then everything left on the state of the greater value.
  assert source.requests == [[(0, 0, 4)], [(2, 0, 4), (4, 0, 4)], [(4, 4, 18)]]
  assert result.focus[0] == 4
  assert result.best_reward[0] == 6.0


def test_ties_stay_at_the_prompt():
  source = Scripted([1.0] * 50, of_state=lambda i: 1.0)
  assert scaling_law_search(source, 20, schedule=Schedule(4, 2)).focus[0] == 0


def test_rollouts_that_ended_within_their_state_are_passed_over():
  source = Scripted([0.0, 5.0, 1.0, 4.0, *[0.0] * 50], of_state=float, ended=[1])
  result = scaling_law_search(source, 30, schedule=Schedule(4, 2))
  np.testing.assert_array_equal(result.candidates, [[0, 4, 3]])


def test_without_any_state_it_is_best_of_n():
  source = Scripted([*range(40)], of_state=float, ended=range(40))
  for search in SEARCHES:
    assert search(source, 40).best_reward[0] == 39.0


def test_branching_spreads_the_rest_evenly():
  source = Scripted([1.0, 2.0, 3.0], of_state=float, ended=[1])
  result = branching_best_of_n(source, 14, schedule=Schedule(1, 3))
  assert source.requests[1] == [(1, 0, 6), (0, 3, 0), (3, 0, 5)]
  assert result.best_reward[0] == 3.0


def test_bandit_gives_more_rounds_to_the_better_state():
  source = TwoLevelGaussian(300, seed=0, reward_scale=0.5)
  result = ucb_search(source, 400, schedule=Schedule(20, 3), states="first")
  shares = np.stack([(result.nodes == n[:, None]).sum(1) for n in result.candidates.T[1:]], axis=1)
  order = np.argsort(
    np.take_along_axis(source.states, result.candidates[:, 1:] - 1, axis=1), axis=1
  )
  worst, _, best = np.take_along_axis(shares, order, axis=1).mean(axis=0)
  assert best > 4 * worst


def test_states_are_the_best_rollouts_that_may_be_chosen():
  rewards = jnp.array([[1.0, 3.0, jnp.nan, 3.0, 2.0]])
  allowed = jnp.array([[True, True, True, True, False]])
  np.testing.assert_array_equal(choose_states(rewards, allowed, num_states=4), [[1, 3, 0, -1]])


def test_focus_is_the_first_of_the_greatest_values():
  values = jnp.array([[1.0, 2.0, 2.0], [jnp.nan, -5.0, -6.0], [jnp.nan] * 3])
  np.testing.assert_array_equal(choose_focus(values), [1, 1, 0])


def test_node_without_rewards_has_no_value():
  rewards = jnp.array([[[1.0, 2.0, 3.0], [jnp.nan] * 3, [1.0, jnp.nan, jnp.nan]]])
  values = np.asarray(node_values(rewards, budget=64))
  np.testing.assert_array_equal(np.isnan(values), [[False, True, False]])
  assert values[0, 2] == 1.0


def test_upper_bounds_by_hand():
  # Rewards 1, 3 | 2: mean 2, variance 2/3, t = 3.
  bounds = upper_bounds(
    jnp.array([[2.0, 1.0, 0.0]]), jnp.array([[4.0, 2.0, 0.0]]), jnp.array([[10.0, 4.0, 0.0]]), 1.0
  )
  width = np.sqrt(2 / 3 * 2 * np.log(3))
  np.testing.assert_allclose(bounds, [[2 + width / np.sqrt(2), 2 + width, np.nan]], rtol=1e-6)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"budget": 0}, "budget=0"),
    ({"schedule": Schedule(0, 2)}, "at least 1 sample"),
    ({"states": "last"}, "states='last'"),
    ({"law": "empirical"}, "law='empirical'"),
  ],
)
def test_impossible_options_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    scaling_law_search(TwoLevelGaussian(2), **{"budget": 50, **options})
