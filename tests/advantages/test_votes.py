import jax.numpy as jnp
import numpy as np
import pytest

from tea_jax.advantages.votes import votes_to_win


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
  threshold = votes_to_win(jnp.asarray(rewards), jnp.asarray(answers), budget=budget)
  assert int(threshold) == expected


def test_unparsable_answers_are_one_wrong_answer_and_correct_ones_none():
  rewards = jnp.array([0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0])
  answers = jnp.array([-1, -2, -7, 4, 4, 4, 4, 2])
  assert int(votes_to_win(rewards, answers, budget=8)) == 4
  masked = jnp.array([True, False, False, True, True, True, True, True])
  # Of six that count, the strongest wrong answer has one: floor(8 / 6) + 1.
  assert int(votes_to_win(rewards, answers, budget=8, where=masked)) == 2
