"""PRNG keys: threefry, whatever JAX's default is, so that a seed means the same numbers anywhere.

TPU scripts export `JAX_DEFAULT_PRNG_IMPL=rbg`, whose numbers depend on how many are drawn together:
a prompt's rollouts would depend on its batch mates.
"""

from __future__ import annotations

import jax
from jaxtyping import Array

THREEFRY = "threefry2x32"


def make_key(seed: int) -> Array:
  """The key of a seed.

  Raises:
    ValueError: if the seed is not in [0, 2^32); JAX would drop the bits beyond.
  """
  if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
    raise ValueError(f"seed={seed!r} must be a whole number in [0, 2^32)")
  return jax.random.key(seed, impl=THREEFRY)


def threefry(key: Array) -> Array:
  """`key` itself if it is threefry; otherwise a threefry key drawn from it."""
  if str(jax.random.key_impl(key)) == THREEFRY:
    return key
  return jax.random.wrap_key_data(jax.random.bits(key, (2,), "uint32"), impl=THREEFRY)
