import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tea_jax
from tea_jax.integrations.groups import HostRule, as_rule, contiguous_groups, groups_by_id


def first_minus_mean(rewards):
  """A rule that depends on the order of a group."""
  return rewards[..., :1] - rewards.mean(-1, keepdims=True) + 0 * rewards


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.integers(0, 1000))
def test_every_row_finds_its_place_and_its_way_back(ids, seed):
  rewards = np.random.default_rng(seed).normal(size=len(ids))
  groups = groups_by_id(rewards, ids)
  present = groups.rows >= 0
  np.testing.assert_array_equal(np.sort(groups.rows[present]), np.arange(len(ids)))
  np.testing.assert_array_equal(
    groups.rewards[present], rewards[groups.rows[present]].astype(np.float32)
  )
  for row in groups.rows:
    assert len({ids[r] for r in row[row >= 0]}) == 1


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 8), st.integers(0, 1000))
def test_shuffled_ragged_rows_get_the_advantages_of_their_own_group(num_groups, seed):
  generator = np.random.default_rng(seed)
  ids = np.repeat(np.arange(num_groups), generator.choice([1, 4, 9], num_groups))
  rewards = generator.normal(size=len(ids)).astype(np.float32)
  order = generator.permutation(len(ids))
  rule = TEA
  result = HostRule(rule)(groups_by_id(rewards[order], ids[order]))
  for group in range(num_groups):
    members = order[ids[order] == group]
    expected = np.asarray(rule(rewards[members]))
    np.testing.assert_allclose(result[ids[order] == group], expected, rtol=2e-5, atol=2e-5)


TEA = tea_jax.tea(tail_fraction=0.5, budget=16)


@pytest.mark.parametrize("num_prompts", [1, 3, 8])
@pytest.mark.parametrize("name", ["tea", "prefix_tea", "grpo", "bon_max_second"])
def test_padding_the_prompt_axis_changes_no_bit(num_prompts, name):
  rule = tea_jax.make_advantage(name)
  rewards = np.random.default_rng(num_prompts).normal(size=(num_prompts, 32)).astype(np.float32)
  key = jax.random.fold_in(jax.random.fold_in(jax.random.key(3), 7), 1)
  expected = np.asarray(rule(rewards, key=key)).reshape(-1)
  result = HostRule(rule, seed=3)(contiguous_groups(rewards.reshape(-1), 32), step=(7, 1))
  np.testing.assert_array_equal(result, expected)
  assert np.any(result != 0)


def test_batches_of_any_number_of_prompts_share_powers_of_two():
  rule = tea_jax.tea(tail_fraction=0.5, budget=32)
  host_rule = HostRule(rule)
  for num_prompts in range(1, 17):
    host_rule(contiguous_groups(np.arange(num_prompts * 8.0), 8))
  assert rule._compiled._cache_size() == 5  # 1, 2, 4, 8, 16


def test_rollouts_without_a_reward_do_not_count():
  rewards = np.array([1.0, np.nan, 3.0, 0.5, 2.0, 2.5, 0.0, np.nan])
  result = HostRule(tea_jax.grpo())(contiguous_groups(rewards, 4, unscored=True))
  expected = np.concatenate([[-0.5, 0, 1.5, -1.0], [0.5, 1.0, -1.5, 0]])
  np.testing.assert_allclose(result, expected, atol=1e-6)


def test_a_batch_without_any_reward_gets_zeros():
  groups = contiguous_groups(np.full(8, np.nan), 4, unscored=True)
  np.testing.assert_array_equal(HostRule(TEA)(groups), np.zeros(8))
  assert HostRule(TEA)(contiguous_groups([], 4)).shape == (0,)
  assert HostRule(TEA)(groups_by_id([], [])).shape == (0,)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39])
def test_a_reward_that_is_not_finite_names_its_row(value):
  rewards = np.arange(8.0)
  rewards[5] = value
  with pytest.raises(ValueError, match="row 5 is"):
    contiguous_groups(rewards, 4)
  with pytest.raises(ValueError, match="row 5 is"):
    groups_by_id(rewards, np.arange(8))


def test_rows_that_are_no_groups_are_refused():
  with pytest.raises(ValueError, match=r"10 rewards .* num_rollouts=4"):
    contiguous_groups(np.zeros(10), 4)
  with pytest.raises(ValueError, match="3 rewards came with 2 group ids"):
    groups_by_id(np.zeros(3), ["a", "b"])
  with pytest.raises(ValueError, match=r"shape \(2, 2\)"):
    contiguous_groups(np.zeros((2, 2)), 2)


def test_rules_that_take_rollouts_as_they_come_get_a_random_order():
  rewards = np.arange(64.0)
  groups = contiguous_groups(rewards, 64)
  as_it_comes = HostRule(first_minus_mean)(groups)
  np.testing.assert_allclose(as_it_comes, -31.5)
  firsts = {float(HostRule(first_minus_mean, shuffle=True)(groups, step=(s,))[0]) for s in range(9)}
  assert len(firsts) > 3
  # A rule made with shuffle=False asks for it by itself, and the same seed and step repeat it.
  prefix = tea_jax.prefix_tea(shuffle=False)
  first = HostRule(prefix, seed=1)(groups, step=(2,))
  np.testing.assert_array_equal(first, HostRule(prefix, seed=1)(groups, step=(2,)))
  assert np.any(first != HostRule(prefix, seed=1)(groups, step=(3,)))
  assert np.any(first != HostRule(prefix, seed=2)(groups, step=(2,)))
  with jax.default_prng_impl("rbg"):  # TPU scripts export it
    np.testing.assert_array_equal(first, HostRule(prefix, seed=1)(groups, step=(2,)))


def test_a_random_order_returns_each_advantage_to_its_row():
  rewards = np.random.default_rng(0).normal(size=60)
  ids = np.repeat(np.arange(6), [3, 17, 10, 10, 12, 8])
  groups = groups_by_id(rewards, ids)
  rule = tea_jax.grpo()
  np.testing.assert_allclose(
    HostRule(rule, shuffle=True)(groups), HostRule(rule)(groups), rtol=1e-5, atol=1e-5
  )


def test_rules_that_need_more_than_rewards_are_refused():
  with pytest.raises(ValueError, match="needs logprobs; trainers hand over rewards only"):
    as_rule("cat_pass_at_n")
  with pytest.raises(ValueError, match="quantiles"):
    as_rule(tea_jax.cat_best_of_n(quantile="tracked"))
  with pytest.raises(ValueError, match="unknown advantage rule 'teaa'"):
    as_rule("teaa")
  assert as_rule(first_minus_mean).name == "first_minus_mean"
