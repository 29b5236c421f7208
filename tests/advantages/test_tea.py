import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from tea_jax.advantages import best_of_n_oracle, tail_influence, tea
from tests.advantages.cases import SHAPE, make, normal_rewards

REWARDS = normal_rewards(SHAPE)[:3]
KAPPA_QUARTER_128 = 2.692398465223154


def reference_tea(rewards, alpha, kappa, positive_part=True):
  """The definition, in numpy float64: rewards `[m]`."""
  rewards = np.asarray(rewards, np.float64)
  top = np.sort(rewards)[::-1][: int(np.ceil(alpha * len(rewards)))]
  q, mean, scale = top[-1], top.mean(), top.std()
  bend = kappa / (2 * scale) * ((rewards - mean) ** 2 - (q - mean) ** 2)
  psi = np.where(rewards >= q, (rewards - q + bend) / alpha, 0.0)
  weights = np.maximum(psi, 0) if positive_part else psi
  return weights - weights.mean()


@pytest.mark.parametrize("positive_part", [True, False])
def test_tea_matches_its_definition(positive_part):
  advantages = tea(positive_part=positive_part)(REWARDS)
  expected = [reference_tea(r, 0.25, KAPPA_QUARTER_128, positive_part) for r in REWARDS]
  np.testing.assert_allclose(advantages, expected, rtol=1e-4, atol=1e-5)


def test_tea_sums_to_zero_and_leaves_one_value_below_the_threshold():
  advantages = np.asarray(tea()(REWARDS))
  np.testing.assert_allclose(advantages.sum(-1), 0, atol=1e-4)
  below = np.argsort(REWARDS, -1)[:, :-5]
  values = np.take_along_axis(advantages, below, -1)
  np.testing.assert_array_equal(values, np.repeat(values[:, :1], values.shape[1], 1))


def test_budget_too_small_is_refused_when_the_rule_is_made():
  for factory in (tea, tail_influence):
    with pytest.raises(ValueError, match=r"budget=2 .*budget >= \d+"):
      factory(budget=2)
    with pytest.raises(ValueError, match=r"tail_fraction=0\.7"):
      factory(tail_fraction=0.7)
    with pytest.raises(ValueError, match="scale_floor=0"):
      factory(scale_floor=0)


def test_tail_of_one_rollout_gives_zeros_and_is_refused_for_training():
  rule = tea(tail_fraction=0.25)
  assert rule.minimum_rollouts == 5
  np.testing.assert_array_equal(rule(np.arange(4, dtype=np.float32)), 0)
  with pytest.raises(ValueError, match=r"num_rollouts=4 is too small.*use num_rollouts >= 5"):
    rule.check_num_rollouts(4)


def test_tail_influence_matches_quadrature():
  alpha, budget, rewards = 0.25, 128, np.asarray(REWARDS[0], np.float64)
  z = stats.norm.isf(alpha)
  mills = stats.norm.pdf(z) / alpha
  top = np.sort(rewards)[::-1][:5]
  sigma = top.std() / np.sqrt(1 + z * mills - mills**2)
  mu = top.mean() - mills * sigma

  def expected_best_with(u):
    others = lambda t: 1 - stats.norm.cdf(t) ** (budget - 1)  # noqa: E731
    return u + integrate.quad(others, u, 12, limit=400)[0]

  values = np.array([expected_best_with((r - mu) / sigma) for r in rewards])
  expected = budget * sigma * (values - values.mean())
  actual = np.asarray(tail_influence()(REWARDS[0]), np.float64)
  np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_tail_influence_of_a_large_gaussian_pool_is_the_oracle():
  # Normal scores: a pool whose empirical law is Gaussian without sampling error.
  pool = stats.norm.ppf((np.arange(2048) + 0.5) / 2048).astype(np.float32)
  fitted = np.asarray(tail_influence(budget=32)(pool))
  exact = np.asarray(best_of_n_oracle(budget=32)(pool))
  cosine = fitted @ exact / np.linalg.norm(fitted) / np.linalg.norm(exact)
  assert cosine > 0.9995
  assert np.dot(fitted, exact) / np.dot(exact, exact) == pytest.approx(1.0, abs=0.03)


def test_tea_gradient_extrapolates_the_gaussian_best_of_n():
  # E[psi score] = (1, c_N) for scores of location and scale: with m large the rule's mean has it.
  rewards = stats.norm.ppf((np.arange(2**14) + 0.5) / 2**14)
  with jax.enable_x64(True):
    advantages = np.asarray(tea(positive_part=False)(jnp.asarray(rewards)))
  location, scale = rewards, rewards**2 - 1
  gradient = np.array([(advantages * location).mean(), (advantages * scale).mean()])
  np.testing.assert_allclose(gradient, [1.0, 2.59459736859947], rtol=5e-3)


def test_scale_floor_does_not_matter_for_ordinary_groups():
  np.testing.assert_allclose(tea(scale_floor=1e-6)(REWARDS), make("tea")(REWARDS), rtol=1e-6)
