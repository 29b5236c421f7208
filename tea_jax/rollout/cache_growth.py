"""The completions' caches grow while a batch decodes: a token reads the places written so far.

A loop over tokens has one shape and reads all places of its caches, also those ahead. So they begin
with a part of the completion's length, and the loop stops where they are full and goes on in a
larger size. With B sizes the mean token reads (B + 1) / (2 B) of what it reads of whole caches.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax

from tea_jax.models.decode_attention import OwnCache

if TYPE_CHECKING:
  from tea_jax.rollout.decode_loop import DecodeState

_VECTOR = 8  # smaller sizes are multiples of it


def cache_sizes(length: int, count: int, multiple: int = 1) -> tuple[int, ...]:
  """At most `count` growing sizes, the last of them `length`.

  Args:
    length: places of a whole cache.
    count: of the sizes.
    multiple: all sizes are rounded up to one of it, see `DecodeAttention`.

  Example:
    >>> cache_sizes(64, 4), cache_sizes(64, 1), cache_sizes(12, 4), cache_sizes(12, 4, multiple=16)
    ((16, 32, 48, 64), (64,), (8, 12), (16,))
  """

  def up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple

  length, smaller = up(length, multiple), math.lcm(_VECTOR, multiple)
  steps = (-(-length * index // count) for index in range(1, count + 1))
  return tuple(sorted({min(length, up(size, smaller)) for size in steps}))


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
  more, grown = next(size for size in sizes if size >= step) - places, []
  for layer in state.cache:
    grown.append(_grown(layer, more))
    for array in (layer.key, layer.value):
      array.delete()
  return state._replace(cache=tuple(grown)), places + more + 1


@functools.partial(jax.jit, static_argnums=1)
def _grown(layer: OwnCache, more: int) -> OwnCache:
  return layer.widen(more)
