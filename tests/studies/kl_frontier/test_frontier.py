"""Equilibria and ceilings against their closed forms; curves, gaps and tables."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

import tea_jax
from tea_jax.studies.kl_frontier import (
  Curve,
  EquilibriumConfig,
  FrontierConfig,
  GaussianWorld,
  base_signal,
  ceiling,
  default_rules,
  make_trainer,
  make_world,
  run_frontier,
)
from tea_jax.studies.kl_frontier.report import (
  load_frontier,
  share_table,
  write_frontier,
)


def gaussian_equilibrium(rule, coefficients, **options):
  params = make_trainer(rule, EquilibriumConfig(**options))(
    GaussianWorld(), jnp.asarray(coefficients, jnp.float32)
  )
  params = np.asarray(params, np.float64)
  return params[:, 0], np.exp(params[:, 1])


def test_mean_objective_shifts_by_one_over_the_coefficient_and_keeps_the_scale():
  coefficients = np.array([0.7, 1.0, 2.0])
  mean, scale = gaussian_equilibrium(tea_jax.grpo(), coefficients, num_groups=64)
  np.testing.assert_allclose(mean, 1 / coefficients * 31 / 32, rtol=0.03)
  np.testing.assert_allclose(scale, 1.0, rtol=0.03)


@pytest.mark.slow
def test_tea_without_its_positive_part_reaches_the_optimum_of_best_of_n():
  # mean = 1 / beta and scale - 1 / scale = c_N / beta maximise mean + c_N scale - beta KL.
  coefficients = np.array([2.0, 3.0, 6.0])
  constant = tea_jax.expected_maximum(128)
  rule = tea_jax.tea(tail_fraction=0.5, budget=128, positive_part=False)
  mean, scale = gaussian_equilibrium(rule, coefficients, num_rollouts=256, steps=200)
  half = constant / coefficients / 2
  np.testing.assert_allclose(scale, half + np.sqrt(half**2 + 1), rtol=0.03)
  np.testing.assert_allclose(mean, 1 / coefficients, rtol=0.03)


def test_signal_of_the_mean_objective_is_known():
  # g = (1, 0), Fisher^-1 = (1, 1/2); a centred group keeps (m - 1) / m of it.
  signal = base_signal(tea_jax.grpo(), GaussianWorld(), EquilibriumConfig(num_rollouts=32))
  assert signal.strength == pytest.approx(31 / 32, rel=0.03)
  # Var of the group's mean of z^2 and of z (z^2 - 1) / sqrt(2): (2 + 5) / 32 + O(1 / m^2).
  assert signal.groups == pytest.approx(7 / 32, rel=0.25)


def test_gaussian_ceiling_is_the_closed_form():
  config = FrontierConfig(worlds=("gaussian_policy",))
  curve = ceiling(GaussianWorld(), config, starts=np.zeros((1, 2)))
  constant = tea_jax.expected_maximum(128)
  for kl in (0.1, 0.5, 1.0):

    def at(beta):
      scale = constant / beta / 2 + np.sqrt((constant / beta / 2) ** 2 + 1)
      return 1 / beta, scale

    def excess(beta, kl=kl):
      mean, scale = at(beta)
      return 0.5 * (scale**2 + mean**2 - 1) - np.log(scale) - kl

    mean, scale = at(optimize.brentq(excess, 0.1, 100.0))
    found = curve.values[curve.kl.index(kl)][-1]
    assert found == pytest.approx(mean + constant * scale, rel=2e-3)


def test_ceiling_is_above_random_policies_of_the_same_kl():
  world = make_world("two_modes", num_prompts=2, num_responses=128)
  config = FrontierConfig(worlds=("two_modes",), targets=(0.5,))
  curve = ceiling(world, config, starts=np.zeros((1, 6)))
  generator, kl = np.random.default_rng(0), jax.jit(world.kl)
  for _ in range(10):
    direction = generator.standard_normal(6).astype(np.float32)
    size: float = optimize.brentq(  # pyright: ignore[reportAssignmentType]
      lambda s, d=direction: float(kl(s * d)) - 0.5, 0.0, 20.0, xtol=1e-2
    )
    value = float(world.best_of_n(jnp.asarray(size * direction), 128))
    assert value <= curve.values[curve.kl.index(0.5)][-1] + 0.01


def test_curve_is_linear_in_the_root_of_kl_and_knows_its_gaps():
  curve = Curve([3.0, 2.0, 1.0], [0.04, 0.09, 2.0], [[2.0], [3.0], [9.0]])
  assert curve.at(0.09, [0.0]) == pytest.approx(np.array([3.0]))
  assert curve.at(0.0625, [0.0]) == pytest.approx(np.array([2.5]))
  assert curve.at(0.5, [0.0]) is None  # jumps from 0.09 to 2
  assert curve.at(3.0, [0.0]) is None  # beyond its end


@pytest.fixture(scope="module")
def small(tmp_path_factory):
  config = FrontierConfig(
    worlds=("gaussian_policy", "two_modes"),
    num_coefficients=6,
    steps=100,
    kl_range=(0.02, 3.0),
    num_prompts=2,
    num_responses=64,
  )
  rules = {k: v for k, v in default_rules(128, 32).items() if k in ("grpo", "max_at_k k=16")}
  results = run_frontier(config, rules)
  folder = tmp_path_factory.mktemp("frontier")
  write_frontier(folder, results, config, command="python -m x", figures=False)
  return config, results, folder


@pytest.mark.slow
def test_no_rule_beats_the_ceiling_and_a_tail_rule_beats_the_mean(small):
  config, results, _ = small
  for world in results.values():
    for rule in world.rules:
      shares = [world.share(rule, kl) for kl in config.targets]
      assert all(share is None or share < 1.01 for share in shares)
  gaussian = results["gaussian_policy"]
  mean, tail = gaussian.share("grpo", 0.5), gaussian.share("max_at_k k=16", 0.5)
  assert mean is not None
  assert tail is not None
  assert mean < 0.55
  assert tail > 0.9


@pytest.mark.slow
def test_stored_result_comes_back_the_same(small):
  config, results, folder = small
  loaded, settings = load_frontier(folder / "results.json")
  assert settings == config
  assert share_table(loaded, config) == share_table(results, config)
  assert share_table(results, config) in (folder / "report.md").read_text()


def test_impossible_settings_are_refused():
  with pytest.raises(ValueError, match=r"worlds has \['flat'\]"):
    FrontierConfig(worlds=("flat",))
  with pytest.raises(ValueError, match="num_groups=12 must be a multiple of num_prompts=8"):
    FrontierConfig(num_groups=12)
  with pytest.raises(ValueError, match="steps=3"):
    FrontierConfig(steps=3)
