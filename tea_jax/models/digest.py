"""A short fingerprint of weights."""

from __future__ import annotations

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tea_jax.runtime import processes


def parameters_digest(params: Any) -> str:
  """A short fingerprint of weights for a record's spec: retrained weights are not mixed up.

  It covers every bit, and is the same on every device and mesh: integers add up alike in any order,
  which floats do not.
  """
  digest = hashlib.blake2b(digest_size=8)
  for path, leaf in sorted(jax.tree.leaves_with_path(params), key=lambda item: str(item[0])):
    digest.update(f"{jax.tree_util.keystr(path)}{leaf.shape}{leaf.dtype}".encode())
    digest.update(np.uint32(processes.fetch(bit_sum(leaf))).tobytes())
  return digest.hexdigest()


@jax.jit
def bit_sum(values: jax.Array) -> jax.Array:
  """The bits of `values` as integers, each times an odd number of its place, added up mod 2^32.

  It is the same on every mesh, and a scalar on every device of it.
  """
  if values.dtype == bool:
    values = values.astype(jnp.uint8)
  width = jnp.dtype(f"uint{8 * min(values.dtype.itemsize, 4)}")
  words = jax.lax.bitcast_convert_type(values, width).astype(jnp.uint32)
  # One factor an axis rather than a flat index: a reshape would gather the shards.
  places = jnp.ones((), jnp.uint32)
  for axis in range(words.ndim):
    step = jnp.uint32(pow(0x9E3779B9, axis + 1, 2**32))
    places = places + step * jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
  return (words * (2 * places + 1)).sum(dtype=jnp.uint32)
