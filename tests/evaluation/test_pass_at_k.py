"""pass@k and maj@k against enumeration."""

import itertools

import numpy as np
import pytest

from tea_jax.evaluation.pass_at_k import majority, majority_at_k, pass_at_k


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


def test_majority_breaks_ties_by_first_occurrence_and_ignores_invalid():
  assert majority(ANSWERS, [1, 0, 3, 4]) == 1
  assert majority(ANSWERS, [0, 1, 3, 4]) == 0
  assert majority(ANSWERS, [2, 5]) == 5
  assert majority([None, None], [0, 1]) is None
  assert majority(ANSWERS, [2, 2, 2, 5]) == 5


@pytest.mark.parametrize("k", [2, 3, 4])
def test_majority_at_k_approaches_the_enumeration_of_all_draws(k):
  draws = list(itertools.permutations(range(6), k))
  expected = np.mean(
    [ANSWERS[winner] == "4" for d in draws if (winner := majority(ANSWERS, d)) is not None]
  )
  estimate = majority_at_k([ANSWERS], CORRECT, k, num_draws=20_000)
  np.testing.assert_allclose(estimate, [expected], atol=0.015)


def test_majority_at_one_is_the_share_of_correct_answers():
  np.testing.assert_array_equal(majority_at_k([ANSWERS], CORRECT, 1), [2 / 6])


def test_no_answers_fail_and_all_correct_win():
  answers = [[None] * 4, ["7"] * 4]
  correct = np.array([[False] * 4, [True] * 4])
  np.testing.assert_array_equal(majority_at_k(answers, correct, 3), [0.0, 1.0])


def test_majority_is_reproducible_and_paired_by_prompt():
  answers = [ANSWERS, ANSWERS]
  correct = np.repeat(CORRECT, 2, axis=0)
  first = majority_at_k(answers, correct, 3, seed=1)
  np.testing.assert_array_equal(first, majority_at_k(answers, correct, 3, seed=1))
  assert first[0] != first[1]


def test_impossible_inputs_are_refused(unchecked):
  with pytest.raises(ValueError, match="k=7 must lie between 1 and the 6"):
    pass_at_k(CORRECT, 7)
  with pytest.raises(ValueError, match="booleans"):
    pass_at_k(CORRECT.astype(float), 1)
  with pytest.raises(ValueError, match="1 lists of 6"):
    majority_at_k([ANSWERS[:5]], CORRECT, 2)
