"""Lexicon sentiment: how positive a completion sounds, un-normalised, continuous, hard to game.

VADER's compound score c = x / sqrt(x^2 + 15) squashes the valence sum x into (-1, 1) and rounds it,
so the best of many completions all look alike. This reward starts from x itself (for plain text
s(c) = c sqrt(15 / (1 - c^2)) gives it back) and guards it against what an optimiser finds first:
text is lower-cased and reduced to its words (no emphasis by capitals, exclamation marks, emoticons
or emoji), a word family ("love", "loving", "lovely") counts once, "but" weakens what precedes it
without amplifying what follows, and word lists, repetition and degenerate lengths lose.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np

from tea_jax.runtime.extras import extra

_BUT_BEFORE = 0.5
# Single letters other than "a" and "i" are what is left of emoticons.
_WORD = re.compile(r"\b(?:[a-z]{2,}|[ai])(?:['-][a-z]+)*\b")
_APOSTROPHES = str.maketrans({"’": "'", "‘": "'", "ʼ": "'"})
_SUFFIXES = (
  "ations", "ation", "ments", "ment", "ships", "ship", "iness", "ness", "fully", "ful", "less",
  "ously", "ous", "iest", "ier", "ily", "ingly", "ings", "ing", "edly", "ed", "ies", "est", "ers",
  "er", "ly", "es", "s", "y", "e", "i",
)  # fmt: skip


def repeated_share(text: str, *, length: int = 4, window: int = 120) -> float:
  """Share of character n-grams of `text` that occurred already within the last characters.

  Args:
    text: any string.
    length: characters in an n-gram.
    window: how many characters back a repetition counts, so that long prose is not punished.

  Returns:
    A number in [0, 1]: about 0.05 for prose, above 0.5 when a phrase is said three times.
  """
  count = len(text) - length + 1
  if count <= 0:
    return 0.0
  last: dict[str, int] = {}
  repeated = 0
  for position in range(count):
    gram = text[position : position + length]
    if position - last.get(gram, -window - 1) <= window:
      repeated += 1
    last[gram] = position
  return repeated / count


@functools.lru_cache(maxsize=65536)
def word_family(word: str) -> str:
  """The stem that a word shares with its inflections and derivations, by suffix stripping."""
  stem = word.removesuffix("'s")
  while True:
    for suffix in _SUFFIXES:
      if stem.endswith(suffix) and len(stem) - len(suffix) >= 3:
        stem = stem[: -len(suffix)]
        break
    else:
      return stem


class LexiconReward:
  """Un-normalised, guarded valence of the completion.

    reward = x * density * length - repetition - shortness
    density    = min(1, (density_limit * w / k)^2)   k charged among w words: word lists lose
    length     = min(1, word_limit / w)              from there on, valence per word counts
    repetition = repetition_weight * repeated_share(words)
    shortness  = shortness_weight * max(0, 1 - w / min_words)

  x is the sum of VADER valences (negations, boosters and idioms in place) over the first
  occurrence of each word family. In units of valence: one strong word is worth about 3.

  Example:
    >>> reward = LexiconReward()
    >>> scores = reward(["The film"] * 2, [" was warm and funny, a happy surprise.", " was awful."])
    >>> bool(scores[0] > scores[1])
    True
  """

  name = "lexicon"
  row_wise = True

  def __init__(
    self,
    *,
    density_limit: float = 0.35,
    word_limit: int = 40,
    min_words: int = 8,
    repetition_weight: float = 4.0,
    shortness_weight: float = 2.0,
  ):
    """Args:
    density_limit: share of charged words, in (0, 1], above which the valence shrinks.
    word_limit: words up to which valence adds up, >= 1.
    min_words: words below which a completion counts as degenerate, >= 1.
    repetition_weight: valence lost by a completion that only repeats itself, >= 0.
    shortness_weight: valence lost by an empty completion, >= 0.
    """
    if not 0 < density_limit <= 1:
      raise ValueError(f"density_limit={density_limit} must lie in (0, 1]")
    if word_limit < 1 or min_words < 1:
      raise ValueError(f"word_limit={word_limit} and min_words={min_words} must both be at least 1")
    if repetition_weight < 0 or shortness_weight < 0:
      raise ValueError(
        f"repetition_weight={repetition_weight} and shortness_weight={shortness_weight} "
        "must not be negative"
      )
    self.density_limit = density_limit
    self.word_limit = word_limit
    self.min_words = min_words
    self.repetition_weight = repetition_weight
    self.shortness_weight = shortness_weight
    self._word_valences = _word_valences()

  def __call__(
    self, prompts: Sequence[str], completions: Sequence[str], **columns: Any
  ) -> np.ndarray:
    return np.array([self.score(completion) for completion in completions], np.float64)

  def score(self, completion: str) -> float:
    """The reward of one completion."""
    words = _WORD.findall(completion.translate(_APOSTROPHES).lower())
    valence, num_charged = self.valence(words)
    num_words = len(words)
    density, length = 1.0, 1.0
    if num_charged > self.density_limit * num_words:
      density = (self.density_limit * num_words / num_charged) ** 2
    if num_words > self.word_limit:
      length = self.word_limit / num_words
    repetition = self.repetition_weight * repeated_share(" ".join(words))
    shortness = self.shortness_weight * max(0.0, 1.0 - num_words / self.min_words)
    return valence * density * length - repetition - shortness

  def valence(self, words: Sequence[str]) -> tuple[float, int]:
    """Valence sum x over distinct word families, and the number of charged words k.

    Args:
      words: lower-case words without punctuation.
    """
    if not words:
      return 0.0, 0
    valences = self._word_valences(" ".join(words))
    total = math.fsum(valences[len(words) :])  # idioms that hold no charged word
    num_charged = 0
    seen = set()
    for word, valence in zip(words, valences, strict=False):
      if valence == 0.0:
        continue
      num_charged += 1
      family = word_family(word)
      if family not in seen:
        seen.add(family)
        total += valence
    return total, num_charged


@functools.cache
def _word_valences() -> Callable[[str], list[float]]:
  """VADER up to its valences: text -> a list over the words, then the idioms found.

  The package's public result holds only the squashed, rounded sum; its scoring hook is replaced.
  """
  with extra("rewards", "the lexicon reward"):
    from vader import SentimentIntensityAnalyzer

  class RawValence(SentimentIntensityAnalyzer):
    def _score_valence(self, sentiments, text):  # pyright: ignore[reportIncompatibleMethodOverride]
      return sentiments

    def _but_check(self, lowered, sentiments):
      if "but" not in lowered:
        return sentiments
      turn = lowered.index("but")
      return [_BUT_BEFORE * s if i < turn else s for i, s in enumerate(sentiments)]

  return cast(Any, RawValence()).polarity_scores
