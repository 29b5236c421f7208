"""Rewards of few levels: every group of them enumerated."""

import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special

import tea_jax

M, N = 8, 64
RULE = tea_jax.tied_tea(tail_fraction=0.25, budget=N)
TEA = tea_jax.tea(tail_fraction=0.25, budget=N)


def expected_power(i, n, budget):
  """E F^(budget - 1) of F ~ Beta(i, n - i), by quadrature."""
  density = lambda f: f ** (i - 1) * (1 - f) ** (n - i - 1) / special.beta(i, n - i)  # noqa: E731
  return integrate.quad(lambda f: density(f) * f ** (budget - 1), 0, 1)[0]


def test_each_mixed_binary_group_gets_the_worth_of_its_gap():
  groups = np.array([[0.0] * (M - k) + [1.0] * k for k in range(M + 1)], np.float32)
  advantages = np.asarray(RULE(jnp.asarray(groups)))
  assert not advantages[[0, M]].any()  # flat groups have nothing to tell apart
  for k in range(2, M):  # a tail of 2 is all ones
    gap = advantages[k, -1] - advantages[k, 0]
    np.testing.assert_allclose(gap, N * expected_power(M - k, M, N), rtol=1e-4)
    assert not np.asarray(TEA(jnp.asarray(groups[k]))).any()
  np.testing.assert_allclose(advantages.sum(-1), 0, atol=1e-4)
  gaps = advantages[2:M, -1] - advantages[2:M, 0]
  assert (np.diff(gaps) < 0).all()  # the surer the best of N, the less a right answer is worth


@pytest.mark.parametrize("p", [0.05, 0.3])
def test_expected_update_on_bernoulli_rewards_ascends_where_tea_gives_less(p):
  counts = np.arange(M + 1)
  chance = np.array([math.comb(M, k) for k in counts]) * p**counts * (1 - p) ** (M - counts)
  groups = np.array([[0.0] * (M - k) + [1.0] * k for k in counts], np.float32)
  score = np.where(groups > 0, 1 / p, -1 / (1 - p))

  def update(rule):
    return float(chance @ (np.asarray(rule(jnp.asarray(groups))) * score).mean(-1))

  assert update(RULE) > update(TEA)
  # The same by every one of the 2^m outcomes: order does not matter.
  outcomes = np.array(list(itertools.product([0.0, 1.0], repeat=M)), np.float32)
  weight = np.where(outcomes > 0, p, 1 - p).prod(-1)
  scores = np.where(outcomes > 0, 1 / p, -1 / (1 - p))
  total = weight @ (np.asarray(RULE(jnp.asarray(outcomes))) * scores).mean(-1)
  np.testing.assert_allclose(total, update(RULE), rtol=1e-4)


def test_five_levels_rise_by_each_gap_s_worth_in_every_tied_group():
  m = 4
  rule = tea_jax.tied_tea(tail_fraction=0.5, budget=16)
  groups = np.array(
    list(itertools.combinations_with_replacement([1.0, 2.0, 3.0, 4.0, 5.0], m)), np.float32
  )
  advantages = np.asarray(rule(jnp.asarray(groups)))
  plain = np.asarray(tea_jax.tea(tail_fraction=0.5, budget=16)(jnp.asarray(groups)))
  tied = groups[:, -1] == groups[:, -2]
  np.testing.assert_allclose(advantages[~tied], plain[~tied], rtol=1e-5, atol=1e-6)
  for group, values in zip(groups[tied], advantages[tied]):
    for i in range(1, m):
      step = group[i] - group[i - 1]
      worth = 16 * step * expected_power(i, m, 16) if step else 0.0
      np.testing.assert_allclose(values[i] - values[i - 1], worth, rtol=1e-3, atol=1e-5)
    assert values.any() == (group[0] < group[-1])


def test_every_group_that_is_not_flat_has_a_signal():
  groups = np.array([[0.0] * (16 - k) + [1.0] * k for k in range(17)], np.float32)
  told = np.asarray(tea_jax.tied_tea(budget=128)(jnp.asarray(groups))).any(-1)
  assert told[1:-1].all()
  plain = np.asarray(tea_jax.tea(budget=128)(jnp.asarray(groups))).any(-1)
  chance = np.array([math.comb(16, k) * 0.3**k * 0.7 ** (16 - k) for k in range(17)])
  assert chance[~plain].sum() > 0.7  # of groups at a success rate of 0.3 tea gives zero


def test_share_of_tied_tails_is_told():
  rewards = jnp.asarray([[0, 0, 0, 1, 1, 1, 1, 1], [1] * 8, [0, 0, 0, 0, 0, 0, 0, 1]], jnp.float32)
  found = tea_jax.advantage_diagnostics(rewards, TEA(rewards), tail_fraction=0.25, budget=N)
  np.testing.assert_allclose(found["tail/tied_frac"], 1 / 3)
