"""The selection metric by hand."""

import numpy as np
import pytest

from tea_jax.runs.state import Best
from tea_jax.training.validation import better, selection_score


def test_score_is_the_mean_of_each_prompts_best():
  rewards = np.array([[1.0, 4.0, 2.0], [0.0, -1.0, 6.0]])
  assert selection_score(rewards, 2) == np.mean([3.0, 3.0])
  assert selection_score(rewards, 1) == 5.0


def test_unscored_completions_do_not_count():
  rewards = np.array([[1.0, np.nan, 3.0], [np.nan, np.nan, np.nan]])
  assert selection_score(rewards, 2) == 2.0
  with pytest.raises(ValueError, match="no validation completion"):
    selection_score(rewards[1:], 2)


def test_the_earliest_wins_a_tie():
  best = better(None, 25, 1.0)
  assert better(best, 50, 1.0) == Best(25, 1.0)
  assert better(best, 50, 1.5) == Best(50, 1.5)
  assert better(best, 50, 0.5) == Best(25, 1.0)
