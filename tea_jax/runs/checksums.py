"""Sums of a checkpoint's arrays and of its JSON: what was damaged on the disk is not trained on."""

from __future__ import annotations

import json
import zlib
from typing import Any

import jax
import numpy as np

from tea_jax.models.digest import bit_sum
from tea_jax.runtime import processes


def checksums(tree: Any) -> list[int]:
  """CRC-32 of each array, in tree order; empty where arrays are spread over processes."""
  leaves = jax.tree.leaves(tree)
  return [] if any(map(_is_spread, leaves)) else [_checksum(leaf) for leaf in leaves]


def bit_sums(tree: Any) -> list[int]:
  """A sum of the bits of each array, in tree order, that no host needs the whole array for."""
  return [int(processes.fetch(bit_sum(leaf))) for leaf in jax.tree.leaves(tree)]


def _is_spread(leaf: Any) -> bool:
  return not getattr(leaf, "is_fully_addressable", True)


def _checksum(leaf: Any) -> int:
  """One array is on the host at a time: those of JAX keep their host copy, so a copy is fetched."""
  if isinstance(leaf, jax.Array) and next(iter(leaf.devices())).platform != "cpu":
    leaf = leaf.copy()
  # The annotation of numpy's buffer protocol needs Python 3.12.
  buffer: Any = np.ascontiguousarray(leaf).view(np.uint8)
  return zlib.crc32(buffer)


def meta_checksum(meta: dict[str, Any]) -> int:
  content = {name: value for name, value in meta.items() if name != "meta_checksum"}
  return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def check_arrays(state: Any, meta: dict[str, Any]) -> None:
  """Compares arrays, on whichever mesh they lie, with the sums of those that were saved.

  Raises:
    ValueError: saying how many of them differ.
  """
  expected, leaves = meta["checksums"], jax.tree.leaves(state)
  if expected:
    actual = [_checksum(processes.fetch(leaf) if _is_spread(leaf) else leaf) for leaf in leaves]
  else:
    expected = meta.get("bit_sums", [])
    actual = bit_sums(state) if expected else []
  if actual != list(expected):
    wrong = sum(a != b for a, b in zip(actual, expected))
    raise ValueError(f"{wrong} of {len(expected)} arrays differ from their checksums")
