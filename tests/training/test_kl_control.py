"""The steered KL: the controller's arithmetic, runs that reach the target, and go on."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from tea_jax.runs.objective import ObjectiveConfig
from tea_jax.training.kl_control import KLControl, controlled_coefficient, observe_kl
from tests.training import tiny


@pytest.fixture(scope="module")
def policy():
  return tiny.policy()


def test_nothing_measured_gives_the_start():
  assert controlled_coefficient(KLControl(), target=0.5, start=2.0) == 2.0


def test_coefficient_is_above_its_start_exactly_when_the_kl_is_above_the_target():
  for kl in (0.1, 0.4, 0.5, 0.6, 3.0):
    control = observe_kl(KLControl(), kl, target=0.5)
    change = controlled_coefficient(control, target=0.5, start=2.0) / 2.0
    assert np.sign(round(math.log(change), 9)) == np.sign(round(math.log(kl / 0.5), 9))


def test_the_coefficient_is_bounded_however_far_the_kl():
  low = high = KLControl()
  for _ in range(500):
    low, high = observe_kl(low, 0.0, target=0.5), observe_kl(high, 1e6, target=0.5)
  assert controlled_coefficient(low, target=0.5, start=2.0) == pytest.approx(2e-3)
  assert controlled_coefficient(high, target=0.5, start=2.0) == pytest.approx(2e3)


def test_a_kl_that_is_not_finite_changes_nothing():
  control = observe_kl(KLControl(), 0.3, target=0.5)
  assert observe_kl(control, float("nan"), target=0.5) == control


@pytest.mark.parametrize("start", [0.1, 1.0, 20.0])
@pytest.mark.parametrize("strength", [0.3, 1.0, 5.0])
def test_a_policy_that_lags_behind_is_brought_to_the_target(start, strength):
  # KL settles at (strength / coefficient)^2 / 2, with a lag of ten steps and noise of a fifth.
  generator = np.random.default_rng(0)
  control, kl, seen = KLControl(), 0.0, []
  for _ in range(150):
    coefficient = controlled_coefficient(control, target=0.5, start=start)
    kl += 0.1 * (min((strength / coefficient) ** 2 / 2, 10.0) - kl)
    control = observe_kl(control, kl * math.exp(0.2 * generator.standard_normal()), target=0.5)
    seen.append(kl)
  assert np.mean(seen[-30:]) == pytest.approx(0.5, rel=0.1)


def _under_adam(strength, noise, *, steps, seed):
  """KLs of a policy whose place x moves by Adam along `strength - coefficient x`; KL = x^2 / 2.

  Adam's steps have one length, so nothing but the coefficient tells it where to stop, and momentum
  carries it on.
  """
  generator = np.random.default_rng(seed)
  control, place, first, second, seen = KLControl(), 0.0, 0.0, 0.0, []
  for step in range(1, steps + 1):
    coefficient = controlled_coefficient(control, target=0.5, start=2.0)
    force = strength - coefficient * place + noise * strength * generator.standard_normal()
    first = 0.9 * first + 0.1 * force
    second = 0.99 * second + 0.01 * force**2
    direction = (first / (1 - 0.9**step)) / math.sqrt(second / (1 - 0.99**step))
    place += min(1.0, step / 4) * direction / 13  # warm-up; KL 0.5 in 13 steps at the least
    kl = max(place, 0.0) ** 2 / 2 + 1e-3
    control = observe_kl(control, kl * math.exp(0.25 * generator.standard_normal()), target=0.5)
    seen.append(kl)
  return np.array(seen)


@pytest.mark.parametrize("steps, allowed", [(60, 0.3), (150, 0.2)])
def test_a_policy_that_momentum_carries_on_is_stopped_near_the_target(steps, allowed):
  missed = []
  for strength, noise in itertools.product((1.0, 3.0, 8.0), (0.5, 2.0)):
    for seed in range(20):
      last = _under_adam(strength, noise, steps=steps, seed=seed)[-steps // 4 :]
      missed.append(abs(math.log(np.mean(last) / 0.5)))
  assert np.mean(missed) < allowed


@pytest.mark.slow
@pytest.mark.parametrize("name", ["grpo", "tea"])
def test_runs_of_different_rules_end_at_the_same_kl(tmp_path, policy, name):
  config = tiny.config(
    tmp_path / "run",
    steps=100,
    seed=3,
    advantage={"name": name},
    sampling={"num_rollouts": 32},
    objective={"kl_coefficient": 0.3, "kl_target": 0.3},
    optimizer={"learning_rate": 7e-4},
    checkpoint={"every": 0},
  )
  kl = [line["kl"] for line in tiny.run(config, policy).metrics]
  assert np.mean(kl[-40:]) == pytest.approx(0.3, rel=0.15)


@pytest.mark.slow
def test_going_on_keeps_the_controller(tmp_path, policy):
  objective = {"kl_coefficient": 0.1, "kl_target": 0.2}
  whole = tiny.run(tiny.config(tmp_path / "whole", objective=objective), policy)

  class Stop(Exception):
    pass

  def stop_at(step, record):
    if step == 2:
      raise Stop

  config = tiny.config(tmp_path / "parts", objective=objective)
  with pytest.raises(Stop):
    tiny.run(config, policy, on_step=stop_at)
  parts = tiny.run(config, policy)
  assert parts.metrics == whole.metrics
  coefficients = [line["kl_coefficient"] for line in whole.metrics]
  assert coefficients[0] == 0.1
  assert len(set(coefficients)) == 4


@pytest.mark.slow
def test_the_target_also_steers_a_kl_in_the_reward(tmp_path, policy):
  objective = {
    "kl_coefficient": 0.1,
    "kl_target": 0.2,
    "kl_placement": "reward",
    "kl_estimator": "k1",
  }
  metrics = tiny.run(tiny.config(tmp_path / "run", objective=objective), policy).metrics
  assert len({line["kl_coefficient"] for line in metrics}) == 4


def test_a_target_without_a_coefficient_to_start_from_is_refused():
  with pytest.raises(ValueError, match=r"kl_target=0.5 needs a kl_coefficient > 0"):
    ObjectiveConfig(kl_target=0.5)
  with pytest.raises(ValueError, match=r"kl_target=-1.0 must be positive"):
    ObjectiveConfig(kl_target=-1.0, kl_coefficient=1.0)
