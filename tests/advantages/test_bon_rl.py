import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tea_jax.advantages import bon_rl
from tea_jax.advantages.bon_rl import tilt_coefficient
from tests.advantages.enumeration import DISTINCT, POLICIES

KNOWN = {2: 2.288641, 4: 4.916908, 8: 9.054541, 16: 17.031899, 32: 33.015789, 128: 129.003916}


@pytest.mark.parametrize("size, value", KNOWN.items())
def test_tilt_coefficient_matches_the_known_roots(size, value):
  assert tilt_coefficient(size) == pytest.approx(value, abs=1e-6)


def test_one_rollout_is_not_tilted():
  assert tilt_coefficient(1) == 0.0


def lemma(policy, distribution, baseline, tilt):
  """E_{y ~ distribution}[(r - b)(score + tilt E_{y' ~ pi}[1{r >= r'} score'])]."""
  not_better = policy.rewards[None, :] <= policy.rewards[:, None]
  correction = not_better @ (policy.probabilities[:, None] * policy.scores)
  gain = distribution * (policy.rewards - baseline)
  return gain @ (policy.scores + tilt * correction)


def test_lemma_is_the_gradient_of_the_tilted_policy():
  # The reference used below is right: finite differences of the reward of pi exp(tilt Q).
  tilt, step = 1.7, 1e-6

  def tilted(logits):
    probabilities = np.exp(logits) / np.exp(logits).sum()
    quality = (DISTINCT.rewards[None, :] <= DISTINCT.rewards[:, None]) @ probabilities
    weights = probabilities * np.exp(tilt * quality)
    return weights / weights.sum()

  value = lambda logits: tilted(logits) @ DISTINCT.rewards  # noqa: E731
  differences = [
    (value(DISTINCT.logits + step * unit) - value(DISTINCT.logits - step * unit)) / (2 * step)
    for unit in np.eye(4)
  ]
  gradient = lemma(DISTINCT, tilted(DISTINCT.logits), value(DISTINCT.logits), tilt)
  np.testing.assert_allclose(gradient, differences, atol=1e-8)


@pytest.mark.parametrize("coefficient", ["kl", "n-1", 0.6])
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_expected_gradient_is_the_lemma_with_exact_selection(policy, coefficient):
  size = 2
  index, probability = policy.groups(size)
  selected = index[np.arange(len(index)), policy.rewards[index].argmax(-1)]
  best_of_two = np.bincount(selected, weights=probability, minlength=len(policy.rewards))
  baseline = float(best_of_two @ policy.rewards)
  tilt = {"kl": tilt_coefficient(size), "n-1": size - 1}.get(coefficient, coefficient)
  rule = bon_rl(selection_size=size, coefficient=coefficient, baseline=baseline, shuffle=False)
  gradient = policy.expected_gradient(rule, 4) / 4
  np.testing.assert_allclose(gradient, lemma(policy, best_of_two, baseline, tilt), atol=1e-12)


def test_advantages_of_a_worked_group():
  rewards = np.array([1.0, 5.0, 2.0, 7.0, 5.0, 0.0], np.float32)
  rule = bon_rl(selection_size=3, coefficient=2.0, shuffle=False)
  gain = 5.0 - 20.0 / 6
  correction = 6 * 2.0 / 3 * gain
  expected = [0, 6 * gain, 0, 0, correction, correction]
  np.testing.assert_allclose(rule(rewards), expected, rtol=1e-6)


def test_shuffling_draws_every_split():
  rewards = jnp.tile(jnp.array([0.0, 1.0, 2.0, 3.0]), (2000, 1))
  advantages = np.asarray(bon_rl(coefficient=0.0)(rewards, key=jax.random.key(0)))
  # The best of two of four is the largest in 3 of 6 splits, then 2 of 6, then 1 of 6.
  gains = np.array([0, -0.5, 0.5, 1.5]) * 4
  chosen = np.isclose(advantages, gains) & (advantages != 0)
  np.testing.assert_allclose(chosen.mean(0), [0, 1 / 6, 2 / 6, 3 / 6], atol=0.04)


def test_arguments_out_of_range_are_refused():
  with pytest.raises(ValueError, match="coefficient='no'"):
    bon_rl(coefficient="no")
  with pytest.raises(ValueError, match="baseline='best'"):
    bon_rl(baseline="best")
  with pytest.raises(ValueError, match="selection_size=0"):
    bon_rl(selection_size=0)
  with pytest.raises(ValueError, match="selection_size=4 leaves no rollout"):
    bon_rl(selection_size=4, shuffle=False)(np.zeros(4, np.float32))
