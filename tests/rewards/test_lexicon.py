"""Lexicon reward: VADER's valence without its squashing, and nothing to win by tricks."""

import importlib.resources
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("vader")

from tea_jax.rewards import call_reward, make_reward
from tea_jax.rewards.lexicon import (
  LexiconReward,
  repeated_share,
  word_family,
)

REWARD = LexiconReward()
WARM = (
  " it was a beautiful morning, the sun was warm, and everyone she met greeted her with a smile."
)
NEUTRAL = " the man walked to the shop and bought a loaf of bread before he went to see his family."
DARK = " it was a terrible, awful and horrible day, and everyone she met was angry and sad."

# Pairs (gamed text, honest text that must not score lower).
GAMES = {
  "exclamation marks": (WARM.rstrip(".") + "!!!!!!!!", WARM),
  "capitals": (WARM.replace("beautiful", "BEAUTIFUL").replace("smile", "SMILE"), WARM),
  "emoji": (NEUTRAL + " 😀😍😍😍❤️ :) :) :D <3", NEUTRAL),
  "one word repeated": (" good" * 18, NEUTRAL),
  "one phrase repeated": (
    " I love it." * 7,
    " I love it, and so does the rest of my family at home.",
  ),
  "one word family": (
    " love lovely loving loved lover loves lovingly lovable loveliness love loves loved loving",
    " I love it, and so does the rest of my family at home.",
  ),
  "word list": (
    " happy joy love wonderful great beautiful excellent perfect amazing best delight paradise",
    WARM,
  ),
  "two charged words only": (" wonderful, amazing.", WARM),
  "one word and stop": (" Wonderful!", NEUTRAL),
  "boosters": (
    " it was very very very very very very very good, and then we all went to see the house.",
    " it was very good, and then we all went to see the house at the end of the road.",
  ),
  "leading but": (" but" + WARM, WARM),
  "saying it twice": (WARM + WARM, WARM),
  "empty": ("", NEUTRAL),
  "no words": ("!!! 😀 1234 ???", NEUTRAL),
}


@pytest.mark.parametrize("game", GAMES)
def test_tricks_do_not_pay(game):
  gamed, honest = GAMES[game]
  # A few neutral words more or less move the repeated share by about 0.01.
  assert REWARD.score(gamed) <= REWARD.score(honest) + 0.02


def test_mood_orders_the_scores_with_room_between():
  dark, neutral, warm = (REWARD.score(text) for text in (DARK, NEUTRAL, WARM))
  assert dark < neutral - 5
  assert neutral < warm - 5


@pytest.mark.parametrize(
  "text",
  [
    "the garden was lovely and we felt at peace with the whole world that evening",
    "she was not happy with the room and it smelled terrible in the morning",
    "he is an extremely kind man who never lies to his friends",
    "the broken heart of the old king was a sad sight for his people",
    "the road goes over the hill and down to the river where the boats are",
  ],
)
def test_valence_equals_the_inverse_of_vader_s_compound_on_plain_text(text):
  from vader import polarity_scores

  valence, _ = REWARD.valence(text.split())
  compound = polarity_scores(text)["compound"]
  np.testing.assert_allclose(valence, compound * np.sqrt(15 / (1 - compound**2)), atol=5e-3)


def test_reward_grows_without_bound_where_the_compound_saturates():
  from vader import polarity_scores

  texts = [
    " we laughed in the sun and thanked our friends for the warm bread and the long walk.",
    " we laughed in the sun and thanked our brave friends for the delicious bread and the joy.",
  ]
  gain = REWARD.score(texts[1]) - REWARD.score(texts[0])
  squashed = polarity_scores(texts[1])["compound"] - polarity_scores(texts[0])["compound"]
  assert gain > 3
  assert squashed < 0.2


def test_negated_praise_counts_as_blame():
  praise = " the food was good, and we sat at the table by the window for an hour."
  assert REWARD.score(praise.replace("was good", "was not good")) < REWARD.score(praise) - 2


def test_length_beyond_the_limit_earns_nothing():
  words = [f"word{chr(97 + i)}{chr(97 + j)}" for i in range(26) for j in range(8)]
  praise = ["kind", "happy", "wonderful", "brave", "beautiful", "delicious", "smile", "honest"]
  rewards = []
  for copies in (1, 2):
    filler = words[: 40 * copies - 4 * copies]
    charged = praise[: 4 * copies]
    rewards.append(REWARD.score(" ".join([*filler, *charged])))
  assert rewards[1] < rewards[0] * 1.25


def test_repeated_share_counts_by_hand():
  assert repeated_share("abcdefgh") == 0.0
  assert repeated_share("abababab") == 3 / 5  # grams abab baba abab baba abab
  assert repeated_share("abc") == 0.0
  assert repeated_share("abcd" + "x" * 0 + "efghij" * 1 + "abcd", window=3) == 0.0


def test_word_family_joins_inflections_and_keeps_strangers_apart():
  families = [
    ("love", "loves", "loved", "loving", "lovely", "lover"),
    ("happy", "happily", "happiness", "happier", "happiest"),
    ("joy", "joys", "joyful", "joyfully", "joyous"),
    ("hope", "hopes", "hopeful", "hoping"),
    ("excite", "excited", "exciting", "excitement"),
    ("friend", "friends", "friendly", "friendship"),
  ]
  stems = [{word_family(word) for word in family} for family in families]
  assert [len(stem) for stem in stems] == [1] * len(families)
  assert len(set.union(*stems)) == len(families)


@given(st.text(max_size=200))
@settings(max_examples=200, deadline=None)
def test_every_text_has_a_finite_score(text):
  assert np.isfinite(REWARD.score(text))


@given(st.sampled_from([WARM, NEUTRAL, DARK]), st.text(alphabet="!?*#~:;()<>3 \n😀❤", max_size=30))
@settings(max_examples=100, deadline=None)
def test_symbols_change_nothing(text, symbols):
  assert REWARD.score(text + symbols) == REWARD.score(text)


def test_scores_of_prose_rarely_tie():
  prose = importlib.resources.files("tea_jax.data").joinpath("openers.txt").read_text().split()
  rng = np.random.default_rng(0)
  starts = rng.choice(len(prose) - 20, size=64, replace=False)
  scores = [REWARD.score(" ".join(prose[start : start + 18])) for start in starts]
  assert len(np.unique(scores)) >= 50


def test_batch_of_a_step_is_scored_well_under_a_second():
  rng = np.random.default_rng(0)
  words = (WARM + NEUTRAL + DARK).split()
  texts = [" ".join(rng.permutation(words)[:20]) for _ in range(2048)]
  start = time.process_time()
  call_reward(make_reward("lexicon"), [""] * len(texts), texts)
  assert time.process_time() - start < 2.0  # 0.25 s


@pytest.mark.parametrize(
  "option", [{"density_limit": 0}, {"word_limit": 0}, {"repetition_weight": -1}]
)
def test_impossible_options_are_refused(option):
  with pytest.raises(ValueError, match=next(iter(option))):
    LexiconReward(**option)
