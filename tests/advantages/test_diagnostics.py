import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tea_jax import tail
from tea_jax.advantages import advantage_diagnostics

REWARDS = np.random.default_rng(0).normal(size=(6, 20)).astype(np.float32)


def diagnose(rewards, advantages, **arguments):
  values = advantage_diagnostics(rewards, advantages, tail_fraction=0.25, budget=64, **arguments)
  return {name: float(value) for name, value in values.items()}


def test_tail_and_prediction_are_means_over_groups():
  result = diagnose(REWARDS, REWARDS)
  vector = tail.tail_vector(jnp.asarray(REWARDS), 0.25)
  value = tail.best_of_n_value(vector, tail_fraction=0.25, budget=64)
  assert result["tail/threshold"] == pytest.approx(float(vector.threshold.mean()), rel=1e-5)
  assert result["tail/mean"] == pytest.approx(float(vector.mean.mean()), rel=1e-5)
  assert result["tail/scale"] == pytest.approx(float(vector.scale.mean()), rel=1e-5)
  assert result["predicted_best_of_budget"] == pytest.approx(float(value.mean()), rel=1e-5)


def test_effective_rollouts_counts_those_that_carry_the_update():
  advantages = np.zeros_like(REWARDS)
  advantages[0, 3] = 5.0  # one rollout
  advantages[1, :4] = [1.0, -1.0, 1.0, -1.0]  # four alike
  result = diagnose(REWARDS, advantages)
  assert result["effective_rollouts"] == pytest.approx(2.5)
  assert result["advantage/zero_group_frac"] == pytest.approx(4 / 6)
  assert result["advantage/nonzero_frac"] == pytest.approx(5 / 120)
  assert result["advantage/max"] == 5.0
  assert result["advantage/min"] == -1.0
  assert result["advantage/mean"] == pytest.approx(5 / 120)
  assert result["advantage/std"] == pytest.approx(advantages.std(), rel=1e-5)


def test_masked_rollouts_do_not_enter():
  where = np.ones_like(REWARDS, bool)
  where[0] = False
  where[1, 1:] = False
  where[2, 15:] = False
  spoiled = np.where(where, REWARDS, np.nan)
  result = diagnose(spoiled, spoiled, where=where, minimum_rollouts=5)
  assert all(np.isfinite(value) for value in result.values())
  assert result["groups_too_small"] == 2
  assert result["advantage/mean"] == pytest.approx(REWARDS[where].mean(), rel=1e-4)
  assert result["advantage/max"] == pytest.approx(REWARDS[where].max())


def test_huge_advantages_do_not_overflow_the_effective_number():
  result = diagnose(REWARDS, np.full_like(REWARDS, 1e30))
  assert result["effective_rollouts"] == pytest.approx(20, rel=1e-5)


def test_no_gradient_flows_and_jit_works():
  total = jax.jit(
    lambda rewards: sum(
      advantage_diagnostics(rewards, rewards, tail_fraction=0.25, budget=64).values()
    )
  )
  np.testing.assert_array_equal(jax.grad(total)(jnp.asarray(REWARDS)), 0)


def test_shapes_must_agree(unchecked):
  with pytest.raises(ValueError, match=r"advantages have shape \(6, 19\)"):
    diagnose(REWARDS, REWARDS[:, 1:])
