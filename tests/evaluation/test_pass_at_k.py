"""pass@k and maj@k against enumeration."""

import itertools

import numpy as np
import pytest

from tea_jax.evaluation.pass_at_k import majority_at_k, majority_winners, pass_at_k


@pytest.mark.parametrize("num_samples", range(1, 8))
def test_pass_at_k_matches_enumeration(num_samples):
  for num_correct in range(num_samples + 1):
    correct = np.arange(num_samples) < num_correct
    for k in range(1, num_samples + 1):
      subsets = list(itertools.combinations(correct, k))
      expected = np.mean([any(subset) for subset in subsets])
      np.testing.assert_allclose(pass_at_k(correct[None], k), [expected], atol=1e-14)


def test_pass_at_k_keeps_its_digits_for_large_pools():
  correct = np.zeros((1, 100_000), bool)
  correct[0, 0] = True
  np.testing.assert_allclose(pass_at_k(correct, 1), 1e-5, rtol=1e-12)
  np.testing.assert_allclose(pass_at_k(correct, 50_000), 0.5, rtol=1e-9)


ANSWERS = ["4", "5", None, "4", "5", "6"]
CORRECT = np.array([[answer == "4" for answer in ANSWERS]])


def winner(answers, draw):
  """As the definition says it, one draw at a time."""
  given = [answers[i] for i in draw if answers[i] is not None]
  if not given:
    return -1
  most = max(given.count(answer) for answer in given)
  chosen = next(answer for answer in given if given.count(answer) == most)
  return next(i for i in draw if answers[i] == chosen)


def test_majority_breaks_ties_by_first_occurrence_and_ignores_invalid():
  draws = np.array([[1, 0, 3, 4], [0, 1, 3, 4], [2, 2, 2, 5]])
  np.testing.assert_array_equal(majority_winners(ANSWERS, draws, [4])[:, 0], [1, 0, 5])
  np.testing.assert_array_equal(majority_winners([None, None], np.array([[0, 1]]), [2]), [[-1]])


def test_winners_are_those_of_the_definition_at_every_budget():
  rng = np.random.default_rng(3)
  for _ in range(20):
    answers = [str(a) if a else None for a in rng.integers(0, 4, 9)]
    draws = np.stack([rng.permutation(9) for _ in range(30)])
    expected = [[winner(answers, draw[:k]) for k in range(1, 10)] for draw in draws]
    np.testing.assert_array_equal(majority_winners(answers, draws, range(1, 10)), expected)


@pytest.mark.parametrize("k", [2, 3, 4])
def test_majority_at_k_approaches_the_enumeration_of_all_draws(k):
  draws = list(itertools.permutations(range(6), k))
  expected = np.mean([(w := winner(ANSWERS, d)) >= 0 and ANSWERS[w] == "4" for d in draws])
  estimate = majority_at_k([ANSWERS], CORRECT, [k], num_draws=20_000)
  np.testing.assert_allclose(estimate, [[expected]], atol=0.015)


def test_majority_at_one_is_the_share_of_correct_answers():
  np.testing.assert_array_equal(majority_at_k([ANSWERS], CORRECT, [1]), [[2 / 6]])


def test_no_answers_fail_and_all_correct_win():
  answers = [[None] * 4, ["7"] * 4]
  correct = np.array([[False] * 4, [True] * 4])
  np.testing.assert_array_equal(majority_at_k(answers, correct, [3]), [[0.0], [1.0]])


def test_a_draw_without_answers_fails_where_the_last_completion_is_right():
  answers, correct = [[None, None, None, "7"]], np.array([[False, False, False, True]])
  np.testing.assert_allclose(majority_at_k(answers, correct, [2, 4]), [[0.5, 1.0]], atol=0.1)


def test_majority_is_reproducible_and_paired_by_prompt():
  answers = [ANSWERS, ANSWERS]
  correct = np.repeat(CORRECT, 2, axis=0)
  first = majority_at_k(answers, correct, [3], seed=1)
  np.testing.assert_array_equal(first, majority_at_k(answers, correct, [3], seed=1))
  assert first[0] != first[1]


def test_impossible_inputs_are_refused(unchecked):
  with pytest.raises(ValueError, match="k=7 must lie between 1 and the 6"):
    pass_at_k(CORRECT, 7)
  with pytest.raises(ValueError, match="booleans"):
    pass_at_k(CORRECT.astype(float), 1)
  with pytest.raises(ValueError, match="1 lists of 6"):
    majority_at_k([ANSWERS[:5]], CORRECT, [2])
