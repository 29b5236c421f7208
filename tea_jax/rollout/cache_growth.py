"""The completions' caches grow while a batch decodes: a token reads the places written so far.

A loop over tokens has one shape and reads all places of its caches, also those ahead. So they begin
with a part of the completion's length, and the loop stops where they are full and goes on in a
larger size. With B sizes the mean token reads (B + 1) / (2 B) of what it reads of whole caches.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from tea_jax.models.attention import KeyValue

if TYPE_CHECKING:
  from tea_jax.rollout.decode_loop import DecodeState

_MULTIPLE = 8  # of places: full vectors


def cache_sizes(length: int, count: int) -> tuple[int, ...]:
  """At most `count` growing sizes, the last of them `length`.

  Example:
    >>> cache_sizes(64, 4), cache_sizes(64, 1), cache_sizes(12, 4)
    ((16, 32, 48, 64), (64,), (8, 12))
  """
  steps = (-(-length * index // count) for index in range(1, count + 1))
  return tuple(sorted({min(length, -(-size // _MULTIPLE) * _MULTIPLE) for size in steps}))


def with_room(state: DecodeState, step: int, sizes: Sequence[int]) -> tuple[DecodeState, int]:
  """The state with a place for its last token at least, and how many tokens its caches then allow.

  Args:
    state: caches that grow are given away, layer by layer, so that one layer at a time is double.
    step: tokens that stand in each row: the next decoding step writes place `step - 1`.
    sizes: from `cache_sizes`.
  """
  places = state.cache[0].value.shape[2]
  if step <= places:
    return state, places + 1
  places, grown = next(size for size in sizes if size >= step), []
  for layer in state.cache:
    grown.append(_grown(layer, places))
    for array in layer:
      array.delete()
  return state._replace(cache=tuple(grown)), places + 1


@functools.partial(jax.jit, static_argnums=1)
def _grown(layer: KeyValue, places: int) -> KeyValue:
  """A layer's cache with so many places, the new ones zero."""
  more = places - layer.value.shape[2]
  return KeyValue(
    jnp.pad(layer.key, ((0, 0), (0, 0), (0, 0), (0, more))),
    jnp.pad(layer.value, ((0, 0), (0, 0), (0, more), (0, 0))),
  )
