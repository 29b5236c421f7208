"""Which checkpoint of a run is the best."""

from tea_jax.runs.state import Best
from tea_jax.training.validation import better


def test_the_earliest_wins_a_tie():
  best = better(None, 25, 1.0)
  assert better(best, 50, 1.0) == Best(25, 1.0)
  assert better(best, 50, 1.5) == Best(50, 1.5)
  assert better(best, 50, 0.5) == Best(25, 1.0)
