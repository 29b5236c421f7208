import numpy as np
import pytest

from tea_jax.rewards import RewardError, call_reward, make_reward
from tea_jax.rewards.proteins import complement_score, hydrophobicity, valley_score


def sequence(hydrophobic: int, length: int) -> str:
  return ("ILVF" * length)[:hydrophobic] + ("DEKR" * length)[: length - hydrophobic]


def test_valley_has_two_modes_and_the_published_maximum():
  h = np.linspace(0, 1, 1_000_001)
  scores = valley_score(h)
  best = int(np.argmax(scores))
  assert valley_score(0.75) == pytest.approx(12.163049, abs=1e-6)
  # The slope of the soluble mode shifts the maximum by a hair.
  assert scores[best] == pytest.approx(12.1652, abs=1e-4)
  assert h[best] == pytest.approx(0.75, abs=0.002)
  local = h < 0.45
  assert scores[local].max() == pytest.approx(4, abs=0.01)
  assert h[local][np.argmax(scores[local])] == pytest.approx(0.35, abs=0.005)
  assert valley_score(0.47) < 2 < valley_score(0.45)


def test_valley_scores_the_share_of_hydrophobic_residues():
  reward = make_reward("hydrophobic_valley")
  texts = [sequence(7, 20), sequence(15, 20), " ".join(sequence(7, 20).lower())]
  scores = call_reward(reward, [""] * 3, texts)
  np.testing.assert_allclose(scores, valley_score(np.array([0.35, 0.75, 0.35])))


def test_short_and_foreign_sequences_get_the_lowest_score():
  reward = make_reward("hydrophobic_valley")
  texts = ["", "ILVFDEKRA", "ILVFDEKRAX", "ILVFDEKRAA"]
  scores = call_reward(reward, [""] * 4, texts)
  np.testing.assert_array_equal(scores[:3], -5)
  assert scores[3] > 0
  shorter = make_reward("hydrophobic_valley", minimum_length=9)
  assert call_reward(shorter, [""], ["ILVFDEKRA"])[0] > 0


def test_complement_wants_the_opposite_share_and_punishes_copies():
  reward = make_reward("hydrophobic_complement")
  given = sequence(3, 10)
  prompt = f"Input: {given} \n Output:"
  texts = [sequence(7, 10), given, sequence(5, 10), "ILVF"]
  scores = call_reward(reward, [prompt] * 4, texts)
  np.testing.assert_allclose(
    scores, [10, 10 * np.exp(-(0.4**2) / 0.05) - 2, 10 * np.exp(-(0.2**2) / 0.05), -5]
  )
  # Near one half a copy is no short cut.
  assert complement_score(0.5, 0.5) == pytest.approx(10)


def test_the_input_may_be_a_column():
  reward = make_reward("hydrophobic_complement")
  scores = call_reward(reward, ["?"], [sequence(7, 10)], {"sequence": [sequence(3, 10)]})
  np.testing.assert_allclose(scores, [10])
  with pytest.raises(RewardError, match="no input sequence in the prompt 'hello'"):
    call_reward(reward, ["hello"], [sequence(7, 10)])


def test_hydrophobicity_counts_eight_residues():
  assert hydrophobicity("AILMFWYV") == 1
  assert hydrophobicity("CDEGHKNPQRST") == 0
  with pytest.raises(ValueError, match="minimum_length=0"):
    make_reward("hydrophobic_valley", minimum_length=0)
