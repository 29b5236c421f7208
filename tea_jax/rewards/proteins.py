"""Rewards of protein sequences by their hydrophobicity, where the mean and the best disagree.

h is the share of residues in {A, I, L, M, F, W, Y, V}. White space is removed and letters are
upper-cased before anything is counted. Each has a second, better mode that lies beyond worse
sequences: a policy that maximises the mean stays in the first.

Source: arXiv 2604.24957, appendices L and M.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"
HYDROPHOBIC = frozenset("AILMFWYV")
# What a sequence that is too short, or holds other letters, is worth.
INVALID_SCORE = -5.0
_INPUT = re.compile(r"Input:(.*?)Output:", re.DOTALL | re.IGNORECASE)


def clean_sequence(text: str) -> str:
  """Residues of a completion: upper case, white space removed."""
  return "".join(text.split()).upper()


def hydrophobicity(sequence: str) -> float:
  """Share of hydrophobic residues of a clean sequence; NaN if it is empty."""
  if not sequence:
    return float("nan")
  return sum(residue in HYDROPHOBIC for residue in sequence) / len(sequence)


def valley_score(share: float | np.ndarray) -> np.ndarray:
  """4 exp(-(h - 0.35)^2 / 0.05) + 12 exp(-(h - 0.75)^2 / 0.015) - 2 [0.45 < h < 0.60].

  A local maximum of about 4 at h = 0.35, where natural soluble proteins are, a valley, and the
  maximum of 12.16 at h = 0.75.

  Source: arXiv 2604.24957, eq. 104.
  """
  h = np.asarray(share, np.float64)
  soluble = 4 * np.exp(-((h - 0.35) ** 2) / 0.05)
  membrane = 12 * np.exp(-((h - 0.75) ** 2) / 0.015)
  return soluble + membrane - 2.0 * ((h > 0.45) & (h < 0.60))


def complement_score(share: float | np.ndarray, wanted_of: float | np.ndarray) -> np.ndarray:
  """10 exp(-(h - (1 - g))^2 / 0.05) - 2 [|h - g| < 0.1 and |g - 0.5| > 0.1], g of the input.

  Source: arXiv 2604.24957, eq. 107.
  """
  h, g = np.asarray(share, np.float64), np.asarray(wanted_of, np.float64)
  copied = (np.abs(h - g) < 0.1) & (np.abs(g - 0.5) > 0.1)
  return 10 * np.exp(-((h - (1 - g)) ** 2) / 0.05) - 2.0 * copied


class HydrophobicValley:
  """`valley_score` of each completion; -5 below `minimum_length` or with other letters."""

  name = "hydrophobic_valley"
  row_wise = True

  def __init__(self, *, minimum_length: int = 10):
    """Args:
    minimum_length: residues that a sequence must have.
    """
    self.minimum_length = _checked_length(minimum_length)

  def __call__(self, prompts: Sequence[str], completions: Sequence[str]) -> np.ndarray:
    del prompts
    sequences = [clean_sequence(text) for text in completions]
    valid = np.array([_is_protein(s, self.minimum_length) for s in sequences], bool)
    shares = np.array([hydrophobicity(s) for s in sequences], np.float64)
    return np.where(valid, valley_score(np.nan_to_num(shares)), INVALID_SCORE)


class HydrophobicComplement:
  """`complement_score` against the prompt's sequence; -5 below `minimum_length` or invalid.

  The input is the column `sequence` of the data, or what stands between "Input:" and "Output:" in
  the prompt.
  """

  name = "hydrophobic_complement"
  row_wise = True

  def __init__(self, *, minimum_length: int = 5):
    """Args:
    minimum_length: residues that a sequence must have.
    """
    self.minimum_length = _checked_length(minimum_length)

  def __call__(
    self,
    prompts: Sequence[str],
    completions: Sequence[str],
    sequence: Sequence[Any] | None = None,
  ) -> np.ndarray:
    given = [None] * len(prompts) if sequence is None else sequence
    inputs = [_input_of(prompt, column) for prompt, column in zip(prompts, given, strict=True)]
    wanted_of = np.array([hydrophobicity(s) for s in inputs], np.float64)
    sequences = [clean_sequence(text) for text in completions]
    valid = np.array([_is_protein(s, self.minimum_length) for s in sequences], bool)
    shares = np.array([hydrophobicity(s) for s in sequences], np.float64)
    return np.where(valid, complement_score(np.nan_to_num(shares), wanted_of), INVALID_SCORE)


def _input_of(prompt: str, column: Any) -> str:
  found = _INPUT.search(prompt)
  text = column if column is not None else found.group(1) if found else ""
  sequence = clean_sequence(str(text))
  if not sequence:
    raise ValueError(
      f"hydrophobic_complement finds no input sequence in the prompt {prompt[:80]!r}; write "
      "'Input: <sequence> \\n Output:', or give a column 'sequence'"
    )
  return sequence


def _is_protein(sequence: str, minimum_length: int) -> bool:
  return len(sequence) >= minimum_length and set(sequence) <= set(AMINO_ACIDS)


def _checked_length(minimum_length: int) -> int:
  if minimum_length < 1:
    raise ValueError(f"minimum_length={minimum_length} must be at least 1")
  return minimum_length
