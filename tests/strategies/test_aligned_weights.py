import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from tea_jax.strategies.aligned_weights import (
  aligned_weights,
  log_best_of_n_weight,
  log_complement,
  log_majority_weight,
  log_pass_weight,
  majority_threshold,
)

mpmath.mp.dps = 50
# p from 1e-30 to 1 - 1e-15, as exact decimals.
PROBABILITIES = [
  *(mpmath.mpf(10) ** -e for e in (30, 25, 20, 16, 12, 8, 5, 3, 2, 1)),
  *(mpmath.mpf(x) for x in ("0.25", "0.5", "0.6", "0.75")),
  *(1 - mpmath.mpf(10) ** -e for e in (1, 2, 4, 7, 10, 13, 15)),
]
LOG_P = np.array([float(mpmath.log(p)) for p in PROBABILITIES])
LOG_Q = np.array([float(mpmath.log1p(-p)) for p in PROBABILITIES])


def pass_weight(p, budget, log_weighted):
  raw = budget * (1 - p) ** (budget - 1)
  return raw * p / (1 - (1 - p) ** budget) if log_weighted else raw


def majority_weight(p, budget, k, log_weighted):
  raw = budget * mpmath.binomial(budget - 1, k - 1) * p ** (k - 1) * (1 - p) ** (budget - k)
  if not log_weighted:
    return raw
  terms = (
    mpmath.binomial(budget, i) * p**i * (1 - p) ** (budget - i) for i in range(k, budget + 1)
  )
  return raw * p / mpmath.fsum(terms)


def assert_log_close(actual, exact, *, rtol, atol):
  expected = np.array([float(mpmath.log(w)) for w in exact])
  np.testing.assert_allclose(np.asarray(actual, np.float64), expected, rtol=rtol, atol=atol)


# A relative error of a weight is an absolute one of its logarithm, which grows with the logarithm.
PRECISION = {"float64": {"rtol": 1e-13, "atol": 1e-12}, "float32": {"rtol": 2e-6, "atol": 2e-5}}


def logs(dtype: str):
  return jnp.asarray(LOG_P, dtype), jnp.asarray(LOG_Q, dtype)


@pytest.mark.parametrize("log_weighted", [False, True])
@pytest.mark.parametrize("budget", [2, 4, 128, 4096])
def test_pass_weights_match_fifty_digits(budget, log_weighted):
  exact = [pass_weight(p, budget, log_weighted) for p in PROBABILITIES]
  for dtype, precision in PRECISION.items():
    with jax.enable_x64(dtype == "float64"):
      log_p, log_q = logs(dtype)
      given = {"budget": budget, "log_weighted": log_weighted}
      # log p alone says everything at small p; near 1 it needs all its digits.
      assert_log_close(log_pass_weight(log_p, log_failure=log_q, **given), exact, **precision)
      assert_log_close(log_pass_weight(log_p, **given), exact, **precision)


@pytest.mark.parametrize("log_weighted", [False, True])
@pytest.mark.parametrize("budget, k", [(8, 1), (8, 3), (8, 8), (64, 26), (64, 33)])
def test_majority_weights_match_fifty_digits(budget, k, log_weighted):
  exact = [majority_weight(p, budget, k, log_weighted) for p in PROBABILITIES]
  for dtype, precision in PRECISION.items():
    with jax.enable_x64(dtype == "float64"):
      log_p, log_q = logs(dtype)
      actual = log_majority_weight(
        log_p, k, budget=budget, log_weighted=log_weighted, log_failure=log_q
      )
      assert_log_close(actual, exact, **precision)


def test_weights_have_their_limits():
  ends = jnp.array([-jnp.inf, 0.0])
  for budget in (1, 7):
    raw = jnp.exp(log_pass_weight(ends, budget=budget))
    np.testing.assert_allclose(raw, [budget, 1.0 if budget == 1 else 0.0], rtol=1e-6)
    smooth = jnp.exp(log_pass_weight(ends, budget=budget, log_weighted=True))
    np.testing.assert_allclose(smooth, [1.0, 1.0 if budget == 1 else 0.0], rtol=1e-6)
  for k in (1, 3, 7):
    smooth = jnp.exp(log_majority_weight(ends, k, budget=7, log_weighted=True))
    np.testing.assert_allclose(smooth, [k, 7.0 if k == 7 else 0.0], rtol=1e-5)


def test_weights_of_sequences_are_constant():
  # What the help text warns of: whole completions are too improbable to tell apart.
  log_p = jnp.array([-80.0, -300.0, -2000.0])
  np.testing.assert_allclose(jnp.exp(log_pass_weight(log_p, budget=128)), 128, rtol=1e-6)
  smooth = jnp.exp(log_pass_weight(log_p, budget=128, log_weighted=True))
  np.testing.assert_allclose(smooth, 1, rtol=1e-6)


def test_majority_with_one_vote_is_pass_at_n():
  log_p, _ = logs("float32")
  for log_weighted in (False, True):
    given = {"budget": 16, "log_weighted": log_weighted}
    np.testing.assert_allclose(
      log_majority_weight(log_p, 1, **given), log_pass_weight(log_p, **given), rtol=1e-5, atol=1e-5
    )


def test_log_complement_is_accurate_at_both_ends():
  log_p, log_q = logs("float32")
  np.testing.assert_allclose(log_complement(log_p), log_q, rtol=1e-5)
  np.testing.assert_array_equal(log_complement(jnp.array([0.0, -jnp.inf])), [-jnp.inf, 0.0])


def test_best_of_n_weight_is_n_q_to_the_n_minus_1():
  quantiles = jnp.array([0.0, 0.25, 0.99, 1.0])
  weights = jnp.exp(log_best_of_n_weight(jnp.log(quantiles), budget=16))
  np.testing.assert_allclose(weights, 16 * np.asarray(quantiles) ** 15, rtol=1e-5)
  ones = jnp.exp(log_best_of_n_weight(jnp.log(quantiles), budget=1))
  np.testing.assert_array_equal(ones, 1.0)


@pytest.mark.parametrize(
  "budget, group, strongest, expected",
  [
    *((8, 8, c, k) for c, k in ((0, 2), (1, 2), (3, 4), (5, 5), (8, 5))),
    (4, 8, 8, 3),
    (16, 8, 3, 7),
    (1, 8, 8, 1),
  ],
)
def test_majority_threshold_beats_the_strongest_wrong_answer(budget, group, strongest, expected):
  # Wrong answers: one of `strongest` copies, the others all different; the rest is correct.
  answers = np.full(group, 7)
  rewards = np.ones(group, np.float32)
  answers[:strongest], rewards[:strongest] = 3, 0.0
  if strongest > 1 and group > strongest:
    answers[strongest], rewards[strongest] = 5, 0.0
  threshold = majority_threshold(jnp.asarray(rewards), jnp.asarray(answers), budget=budget)
  assert int(threshold) == expected


def test_unparsable_answers_are_one_wrong_answer_and_correct_ones_none():
  rewards = jnp.array([0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0])
  answers = jnp.array([-1, -2, -7, 4, 4, 4, 4, 2])
  assert int(majority_threshold(rewards, answers, budget=8)) == 4
  masked = jnp.array([True, False, False, True, True, True, True, True])
  # Of six that count, the strongest wrong answer has one: floor(8 / 6) + 1.
  assert int(majority_threshold(rewards, answers, budget=8, where=masked)) == 2


def test_clip_comes_before_normalization_and_batch_keeps_ratios():
  log_weights = jnp.log(jnp.array([[1.0], [4.0], [100.0]]))
  weights = aligned_weights(log_weights, (3, 2), clip=7.0, normalization="batch")
  np.testing.assert_allclose(weights, np.repeat([[1 / 4], [1.0], [7 / 4]], 2, axis=1), rtol=1e-6)
  grouped = aligned_weights(log_weights, (3, 2), normalization="group")
  np.testing.assert_allclose(grouped, 1.0, rtol=1e-6)
  plain = aligned_weights(log_weights, (3, 2), clip=7.0)
  np.testing.assert_allclose(plain[:, 0], [1, 4, 7], rtol=1e-6)


def test_batch_mean_counts_only_rollouts_that_count():
  log_weights = jnp.log(jnp.array([[2.0, 4.0], [6.0, 1e30]]))
  where = jnp.array([[True, True], [True, False]])
  weights = aligned_weights(log_weights, (2, 2), where=where, normalization="batch")
  np.testing.assert_allclose(weights, [[0.5, 1.0], [1.5, 0.0]], rtol=1e-6)


def test_a_batch_of_one_prompt_keeps_its_weight():
  log_weights = jnp.log(jnp.array([[3.0]]))
  np.testing.assert_allclose(aligned_weights(log_weights, (1, 4), normalization="batch"), 3.0)


def test_weights_that_underflow_are_still_normalized_and_zeros_stay():
  log_weights = jnp.array([[-5000.0, -5001.0], [-jnp.inf, -jnp.inf]])
  weights = aligned_weights(log_weights, (2, 2), normalization="group")
  expected = 2 / (1 + np.exp(-1.0))
  np.testing.assert_allclose(weights[0], [expected, 2 - expected], rtol=1e-4)
  np.testing.assert_array_equal(weights[1], 0)
