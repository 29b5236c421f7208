"""Signal and noise of a group's gradient along two directions: a shift of all rewards, a widening.

Rewards N(0, 1): the score of the mean is r, that of the log standard deviation r^2 - 1, and the
derivatives of the expected best of N are 1 and the expected maximum of N normal rewards.
"""

import jax
import numpy as np
import pytest

from tea_jax import make_advantage
from tea_jax.evaluation import best_of_n_exact

NUM_ROLLOUTS, BUDGET = 32, 128


def signal(rewards, name, **options):
  """`direction -> (mean of the groups' gradients, mean over standard deviation)`."""
  advantages = np.asarray(jax.jit(make_advantage(name, **options))(rewards))
  scores = {"shift": np.asarray(rewards), "widening": np.asarray(rewards) ** 2 - 1}
  estimates = {direction: (advantages * s).mean(1) for direction, s in scores.items()}
  return {d: (e.mean(), e.mean() / e.std()) for d, e in estimates.items()}


@pytest.fixture(scope="module")
def signals():
  rewards = jax.random.normal(jax.random.key(0), (4000, NUM_ROLLOUTS))
  found = {}
  for name in ("grpo", "tea", "tail_influence"):
    options = {} if name == "grpo" else {"budget": BUDGET}
    found[name] = signal(rewards, name, **options)
  return found


def test_both_objectives_rise_equally_with_a_shift(signals):
  """All rewards one up: mean and best of N one up; the group's mean takes 1 / m of it."""
  assert signals["grpo"]["shift"][0] == pytest.approx(1 - 1 / NUM_ROLLOUTS, abs=0.02)
  assert signals["tea"]["shift"][0] == pytest.approx(1.0, abs=0.05)


def test_only_the_tail_rule_sees_a_widening(signals):
  exact = best_of_n_exact(np.random.default_rng(0).normal(size=(2000, BUDGET)), [BUDGET]).mean()
  assert abs(signals["grpo"]["widening"][0]) < 0.05
  assert 0.65 * exact < signals["tea"]["widening"][0] < exact
  # The tail fitted to 32 rewards ends before the best of 128 begins.
  assert signals["tail_influence"]["widening"][0] < 0.5 * signals["tea"]["widening"][0]


def test_the_mean_is_the_less_noisy_way_to_shift(signals):
  """Why GRPO travels further where nothing but a shift is needed."""
  assert signals["grpo"]["shift"][1] > 2.5 * signals["tea"]["shift"][1]


def test_a_wider_tail_is_less_noisy_in_both_directions():
  """On Gaussian rewards, where no tail fraction is biased by the shape."""
  rewards = jax.random.normal(jax.random.key(1), (4000, NUM_ROLLOUTS))
  ratios = []
  for tail_fraction in (0.125, 0.25, 0.5):
    found = signal(rewards, "tea", budget=BUDGET, tail_fraction=tail_fraction)
    ratios.append([found[direction][1] for direction in ("shift", "widening")])
  np.testing.assert_allclose(ratios, [[1.05, 0.72], [1.30, 0.85], [1.62, 0.98]], atol=0.06)
