"""Records `tests/golden/logits_*.npz` from `transformers`: python -m tests.models.record_golden."""

from __future__ import annotations

import pathlib
import tempfile

import numpy as np

from tests.models.families import FAMILIES, GOLDEN, LENGTHS, tokens, write_folder
from tests.models.test_parity_families import torch_logits, torch_model


def main() -> None:
  GOLDEN.mkdir(exist_ok=True)
  with tempfile.TemporaryDirectory() as temporary:
    for name, hf in FAMILIES.items():
      folder = write_folder(pathlib.Path(temporary) / name, hf)
      rows = torch_logits(torch_model(folder), tokens(), LENGTHS)
      # A few positions of each row: the first, the middle and the last.
      kept = [row if row.ndim == 1 else row[_positions(len(row))] for row in rows]
      np.savez_compressed(GOLDEN / f"logits_{name}.npz", *[row.astype(np.float32) for row in kept])
      print(name, [row.shape for row in kept], float(np.std(np.concatenate(rows))))


def _positions(length: int) -> list[int]:
  return sorted({0, length // 2, length - 1})


if __name__ == "__main__":
  main()
