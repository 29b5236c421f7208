"""Rewards of your own: functions of texts, one number a completion.

    python -m experiments.train --preset quickstart --run-folder runs/polite \
      --reward.functions experiments/examples/own_reward.py:short_and_polite
"""

from __future__ import annotations


def short_and_polite(prompts, completions):
  """1 for a "please" or "thank you", minus 0.01 a character."""
  polite = ("please", "thank you")
  return [
    float(any(word in text.lower() for word in polite)) - 0.01 * len(text) for text in completions
  ]


def names_the_answer(prompts, completions, answer):
  """1 where the data's column `answer` stands in the completion; None scores no row without one."""
  return [
    None if wanted is None else float(str(wanted) in text)
    for text, wanted in zip(completions, answer)
  ]


class Counted:
  """A reward with options and state, made once; it also logs a number a step.

  python -m experiments.train --reward.functions experiments/examples/own_reward.py:Counted \
    --reward.options '{"experiments/examples/own_reward.py:Counted": {"word": "sun"}}'
  """

  name = "counted"

  def __init__(self, *, word: str = "sun"):
    self.word = word

  def __call__(self, prompts, completions, context):
    counts = [text.lower().count(self.word) for text in completions]
    context.metrics["counted/share"] = sum(map(bool, counts)) / len(counts)
    return counts
