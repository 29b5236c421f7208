"""A protein model that is made here: one token a residue, trained on drawn natural sequences.

The published experiments use ProtGPT2. This is the same task for a laptop: a GPT-2 of under a
million parameters whose samples look like short natural proteins by their composition, most of them
soluble and a few rich in hydrophobic residues.

Source: arXiv 2604.24957, appendices L and M; residue frequencies of UniProtKB/Swiss-Prot.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tea_jax.data.prompts import Prompt, make_prompt
from tea_jax.data.supervised import Pair
from tea_jax.models.policy import Policy
from tea_jax.rewards.proteins import AMINO_ACIDS, HYDROPHOBIC
from tea_jax.studies.compute_aligned.letters import START, letter_policy

# The frame of the conditional task, `Input: <sequence> \\n Output:`, a token each.
_FRAME = ("Input:", "Output:")
# Percent of the residues of Swiss-Prot.
_FREQUENCIES = {
  "A": 8.3, "R": 5.5, "N": 4.1, "D": 5.5, "C": 1.4, "Q": 3.9, "E": 6.7, "G": 7.1, "H": 2.3,
  "I": 5.9, "L": 9.7, "K": 5.8, "M": 2.4, "F": 3.9, "P": 4.7, "S": 6.6, "T": 5.3, "W": 1.1,
  "Y": 2.9, "V": 6.9,
}  # fmt: skip
# Share of membrane-like sequences, and the laws of a sequence's hydrophobic share.
_MEMBRANE = 0.02
_SOLUBLE_LAW, _MEMBRANE_LAW = (10.0, 18.0), (20.0, 12.0)
MIN_RESIDUES, MAX_RESIDUES = 40, 48


def protein_policy(*, seed: int = 0) -> Policy:
  """An untrained GPT-2 with a token for each residue, in float32."""
  return letter_policy(AMINO_ACIDS, words=_FRAME, seed=seed)


def natural_sequences(count: int, *, seed: int = 0) -> list[str]:
  """Sequences with natural residue frequencies and lengths of 40 to 47 residues.

  The hydrophobic share of a sequence is drawn from Beta(10, 18), mean 0.36; of one in fifty, from
  Beta(20, 12), mean 0.63. In 300 updates the model learns that a share lasts for the sequence.
  """
  rng = np.random.default_rng(seed)
  shares = np.where(
    rng.random(count) < _MEMBRANE, rng.beta(*_MEMBRANE_LAW, count), rng.beta(*_SOLUBLE_LAW, count)
  )
  lengths = rng.integers(MIN_RESIDUES, MAX_RESIDUES, count)
  return [_sequence(share, int(length), rng) for share, length in zip(shares, lengths, strict=True)]


def _sequence(share: float, length: int, rng: np.random.Generator) -> str:
  hydrophobic, others = _RESIDUES
  of_each = np.where(
    rng.random(length) < share,
    rng.choice(hydrophobic[0], length, p=hydrophobic[1]),
    rng.choice(others[0], length, p=others[1]),
  )
  return "".join(of_each)


def _residue_law(hydrophobic: bool) -> tuple[np.ndarray, np.ndarray]:
  chosen = [r for r in AMINO_ACIDS if (r in HYDROPHOBIC) == hydrophobic]
  frequencies = np.array([_FREQUENCIES[r] for r in chosen])
  return np.array(chosen), frequencies / frequencies.sum()


_RESIDUES = (_residue_law(True), _residue_law(False))


def start_prompt() -> Prompt:
  """The prompt of unconditional generation: the start token alone."""
  return make_prompt(START)


def natural_pairs(count: int = 20_000, *, seed: int = 0) -> list[Pair]:
  """Pairs that teach the model natural sequences from the start token."""
  prompt = start_prompt()
  return [Pair(prompt, sequence) for sequence in natural_sequences(count, seed=seed)]


def complement_rows(count: int = 2000, *, seed: int = 0) -> Iterator[dict[str, str]]:
  """Gold pairs of the conditional task: a sequence, and one of the opposite hydrophobic share.

  The prompt is `Input: <sequence> \\n Output:`; the input's share is uniform in 0.1 ... 0.9.
  """
  rng = np.random.default_rng([seed, 1])
  for _ in range(count):
    share, length = rng.uniform(0.1, 0.9), int(rng.integers(16, 25))
    given = _with_share(share, length, rng)
    yield {
      "prompt": f"Input: {given} \n Output:",
      "sequence": given,
      "completion": _with_share(1 - share, length, rng),
    }


def _with_share(share: float, length: int, rng: np.random.Generator) -> str:
  """A sequence whose hydrophobic residues are as many as the share says, in random order."""
  count = int(np.round(share * length))
  (hydrophobic, first), (others, second) = _RESIDUES
  residues = [
    *rng.choice(hydrophobic, count, p=first),
    *rng.choice(others, length - count, p=second),
  ]
  return "".join(rng.permutation(residues))
