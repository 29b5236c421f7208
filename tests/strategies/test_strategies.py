import functools

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tea_jax.strategies import best_of_n, majority, majority_threshold, pass_at_n

mpmath.mp.dps = 80
LOG_P = [-1e-9, -1e-6, -1e-3, -0.1, -0.5, -np.log(2), -1.0, -3.0, -10.0, -30.0, -80.0, -1e3, -1e4]
STRATEGIES = {
  "pass@1": pass_at_n(1),
  "pass@4": pass_at_n(4),
  "pass@64": pass_at_n(64),
  "pass@4096": pass_at_n(4096),
  "maj@8": majority(8, 3),
  "maj@8 of all": majority(8, 8),
  "maj@64": majority(64, 26),
  "maj@64 of one": majority(64, 1),
  "best of 16": best_of_n(16),
}
# A relative error of S is an absolute one of its logarithm, which grows with the logarithm.
PRECISION = {"float64": {"rtol": 1e-13, "atol": 2e-13}, "float32": {"rtol": 3e-6, "atol": 3e-5}}


def exact(strategy, log_p):
  """(log S, log S', log(p S' / S)) in 80 digits; a threshold is read off the strategy."""
  p = mpmath.exp(mpmath.mpf(log_p))
  n, k = strategy.budget, int(getattr(strategy, "threshold", 1))
  q = 1 - p
  if k == 1:
    success = -mpmath.expm1(n * mpmath.log1p(-p))
  elif p <= 0.5:
    success = mpmath.fsum(mpmath.binomial(n, i) * p**i * q ** (n - i) for i in range(k, n + 1))
  else:
    success = 1 - mpmath.fsum(mpmath.binomial(n, i) * p**i * q ** (n - i) for i in range(k))
  weight = n * mpmath.binomial(n - 1, k - 1) * p ** (k - 1) * q ** (n - k)
  return mpmath.log(success), mpmath.log(weight), mpmath.log(p * weight / success)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", STRATEGIES)
def test_success_and_weights_match_eighty_digits(name, dtype):
  strategy = STRATEGIES[name]
  with jax.enable_x64(dtype == "float64"):
    log_p = jnp.asarray(LOG_P, dtype)
    actual = jax.jit(
      lambda x: (strategy.log_success(x), strategy.log_weight(x), strategy.log_supervised_weight(x))
    )(log_p)
    expected = zip(*(exact(strategy, float(x)) for x in log_p))
    for got, values in zip(actual, expected, strict=True):
      assert got.dtype == dtype
      np.testing.assert_allclose(
        np.asarray(got, np.float64), [float(v) for v in values], **PRECISION[dtype]
      )


@pytest.mark.parametrize("name", ["pass@64", "maj@8", "maj@64", "best of 16"])
def test_a_probability_near_one_may_be_said_by_its_complement(name):
  # log p = -1e-12 is -0.0 + ... in float32; log(1 - p) has all its digits.
  strategy = STRATEGIES[name]
  expected = exact(strategy, -1e-12)
  log_p, log_failure = jnp.float32(-1e-12), jnp.float32(np.log(1e-12))
  for method, value in zip(("log_weight", "log_supervised_weight"), expected[1:]):
    found = getattr(strategy, method)(log_p, log_failure)
    np.testing.assert_allclose(found, float(value), rtol=3e-6)


@pytest.mark.parametrize("name", STRATEGIES)
def test_one_minus_success_keeps_its_digits(name, float64):
  # 1 - S is below 1e-16 here: a sum of the upper tail would say log S = 0.
  strategy = STRATEGIES[name]
  if name in ("pass@1", "maj@8 of all"):
    return  # 1 - S is not small there
  expected = exact(strategy, -1e-9)[0]
  actual = float(strategy.log_success(jnp.asarray(-1e-9)))
  if expected < -1e-300:
    assert actual == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize("name", STRATEGIES)
def test_gradient_of_the_loss_is_the_supervised_weight_times_that_of_the_likelihood(name, float64):
  strategy = STRATEGIES[name]
  log_p = jnp.asarray([-1e-4, -0.1, -1.0, -5.0, -30.0, -500.0])
  gradient = jax.vmap(jax.grad(strategy.loss))(log_p)
  np.testing.assert_allclose(-gradient, strategy.supervised_weight(log_p), rtol=1e-12)
  step = 1e-5 * jnp.abs(log_p)
  difference = (strategy.loss(log_p + step) - strategy.loss(log_p - step)) / (2 * step)
  np.testing.assert_allclose(gradient, difference, rtol=2e-6, atol=1e-9)


@pytest.mark.parametrize("name", STRATEGIES)
def test_ends_are_finite_and_have_their_limits(name):
  strategy = STRATEGIES[name]
  k = int(getattr(strategy, "threshold", 1))
  ends = jnp.array([-1e30, 0.0])
  certain = float(strategy.budget) if k == strategy.budget else 0.0
  np.testing.assert_allclose(strategy.supervised_weight(ends), [k, certain], rtol=1e-4)
  gradient = jax.vmap(jax.grad(strategy.loss))(ends)
  np.testing.assert_allclose(-gradient, [k, certain], rtol=1e-4)
  assert float(strategy.loss(jnp.asarray(0.0))) == 0
  never = strategy.log_weight(jnp.asarray(-jnp.inf))
  expected = np.log(strategy.budget) if k == 1 else -np.inf
  np.testing.assert_allclose(never, expected, rtol=1e-6)


@pytest.mark.parametrize("name", STRATEGIES)
def test_no_branch_makes_a_jump(name, float64):
  strategy = STRATEGIES[name]
  # Where each kind of branch lies: log 2, k / (N + 1), and the one of tiny probabilities.
  borders = [-np.log(2), np.log(np.finfo(float).eps / strategy.budget)]
  borders.append(np.log(int(getattr(strategy, "threshold", 1)) / (strategy.budget + 1)))
  for border in borders:
    around = border * (1 + np.array([-1e-12, -1e-15, 0, 1e-15, 1e-12]))
    for value in (strategy.loss, strategy.supervised_weight):
      values = np.asarray(value(jnp.asarray(around)))
      np.testing.assert_allclose(values, values[2], rtol=1e-9, atol=1e-300)


def test_one_vote_is_pass_at_n_and_one_sample_is_cross_entropy(float64):
  log_p = jnp.asarray(LOG_P)
  for budget in (1, 4, 64):
    one, passed = (
      jax.jit(lambda log_p, s=strategy: (s.loss(log_p), s.supervised_weight(log_p)))(log_p)
      for strategy in (majority(budget, 1), pass_at_n(budget))
    )
    np.testing.assert_allclose(one[0], passed[0], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(one[1], passed[1], rtol=1e-10, atol=1e-290)
  np.testing.assert_allclose(pass_at_n(1).loss(log_p), -log_p, rtol=1e-14)
  np.testing.assert_allclose(majority(5, 5).loss(log_p), -5 * log_p, rtol=1e-12)


def test_best_of_n_is_the_difference_of_two_powers(float64):
  rng = np.random.default_rng(0)
  below, own = rng.uniform(0.05, 0.5, 20), rng.uniform(0.01, 0.5, 20)
  for budget in (1, 3, 32):
    strategy = best_of_n(budget)
    success = (below + own) ** budget - below**budget
    log_own, log_below = jnp.log(own), jnp.log(below)
    np.testing.assert_allclose(jnp.exp(strategy.log_success(log_own, log_below)), success)
    np.testing.assert_allclose(strategy.weight(log_own, log_below), budget * below ** (budget - 1))
    np.testing.assert_allclose(
      strategy.supervised_weight(log_own, log_below),
      own * budget * below ** (budget - 1) / success,
    )


def test_best_of_n_with_nothing_below_takes_all_samples_of_that_reward():
  strategy = best_of_n(4)
  success = strategy.log_success(jnp.log(0.5), -jnp.inf)
  np.testing.assert_allclose(success, 4 * np.log(0.5), rtol=1e-6)
  assert float(strategy.weight(jnp.log(0.5), -jnp.inf)) == 0
  tiny = strategy.supervised_weight(jnp.asarray(-200.0), jnp.log(0.5))
  np.testing.assert_allclose(tiny, 1.0, rtol=1e-6)


@given(
  st.lists(st.floats(-1e4, -1e-9), min_size=16, max_size=16),
  st.sampled_from([(1, 1), (7, 3), (64, 26), (64, 64), (200, 2)]),
)
@settings(max_examples=40, deadline=None)
def test_weights_are_between_zero_and_the_threshold(log_p, votes):
  budget, k = votes
  weight = np.asarray(_supervised_weight(jnp.asarray(log_p, jnp.float32), budget, k))
  # p S' / S falls from k to 0, or stays at N where all votes are needed.
  assert np.all((weight >= 0) & (weight <= k * (1 + 1e-3)))
  assert np.all(np.diff(weight[np.argsort(log_p)]) <= 1e-3 * k)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _supervised_weight(log_p, budget, k):
  return majority(budget, k).supervised_weight(log_p)


def test_thresholds_may_differ_from_prompt_to_prompt(float64):
  log_p = jnp.log(jnp.array([[0.2], [0.4], [0.9]]))
  thresholds = jnp.array([[2], [3], [5]])

  def measured(strategy, log_p):
    names = ("log_success", "weight", "supervised_weight")
    return jax.jit(lambda log_p: [getattr(strategy, name)(log_p) for name in names])(log_p)

  together = measured(majority(8, thresholds), log_p)
  for row, k in enumerate((2, 3, 5)):
    for all_rows, one in zip(together, measured(majority(8, k), log_p[row]), strict=True):
      np.testing.assert_allclose(all_rows[row], one, rtol=1e-12)


@pytest.mark.parametrize(
  "budget, fraction, expected",
  [(8, 0.33, 3), (16, 0.25, 4), (64, 0.40, 26), (64, 0.25, 16), (64, 0.33, 22), (100, 0.07, 7)],
)
def test_majority_threshold_is_the_ceiling_in_decimals(budget, fraction, expected):
  assert majority_threshold(budget, fraction) == expected


@pytest.mark.parametrize(
  "make, message",
  [
    (lambda: pass_at_n(0), "budget=0"),
    (lambda: majority(8, 9), "threshold=9 .* budget=8"),
    (lambda: majority(8, 0), "threshold=0"),
    (lambda: majority_threshold(8, 0.0), "fraction=0.0"),
  ],
)
def test_impossible_strategies_are_refused(make, message):
  with pytest.raises(ValueError, match=message):
    make()


def test_a_tabular_policy_reaches_the_optimum_of_its_strategy(float64):
  # Two prompts share one softmax over three answers; the target is answer 0 for 70 % of the prompts
  # and answer 1 for the rest. S decides how the policy splits its mass.
  shares = jnp.array([0.7, 0.3])
  grid = np.linspace(1e-6, 1 - 1e-6, 200_001)
  for strategy in (pass_at_n(1), pass_at_n(8), majority(8, 2)):

    def loss(logits, strategy=strategy):
      return shares @ strategy.loss(jax.nn.log_softmax(logits)[:2])

    def step(_, logits, loss=loss):
      return logits - jax.grad(loss)(logits)

    logits = jax.lax.fori_loop(0, 20_000, step, jnp.zeros(3))
    objective = shares @ np.stack(
      [strategy.loss(jnp.log(jnp.asarray(x))) for x in (grid, 1 - grid)]
    )
    best = grid[int(np.argmin(objective))]
    np.testing.assert_allclose(jax.nn.softmax(logits)[0], best, atol=2e-3)


def test_supervised_and_reinforcement_gradients_agree(float64):
  # E[r S'(p) grad log pi] = grad S(p); grad -log S = -(1 / S) of it.
  logits = jnp.array([0.3, -0.4, 0.1])
  for strategy in (pass_at_n(4), majority(8, 3), best_of_n(4)):
    log_p = jax.nn.log_softmax(logits)[0]
    reinforce = (
      jnp.exp(log_p) * strategy.weight(log_p) * jax.grad(lambda z: jax.nn.log_softmax(z)[0])(logits)
    )
    supervised = jax.grad(lambda z, s=strategy: s.loss(jax.nn.log_softmax(z)[0]))(logits)
    np.testing.assert_allclose(
      supervised, -reinforce / jnp.exp(strategy.log_success(log_p)), rtol=1e-10
    )
