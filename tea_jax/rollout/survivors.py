"""Rows that still write move together while a batch decodes: those that ended cost nothing more.

Rows stand in P blocks, one prompt a block. When the survivors fit into P blocks of half the rows,
they move there; a prompt with many survivors takes several blocks, one without any takes none. So
shapes are static, the prompts' cache stays shared by blocks, and each move halves the rows.

Axes: P blocks, m rows of each, R = P m rows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Int


class Move(NamedTuple):
  """Where rows go.

  Attributes:
    blocks: `[P]`, the block that each new one is cut from.
    rows: `[R']`, the row that each new one was.
    kept: `[R']`, False for places that are left over: their rows count as done.
  """

  blocks: np.ndarray
  rows: np.ndarray
  kept: np.ndarray


def fits(done: Bool[Array, "R"], blocks: int, size: int) -> Bool[Array, ""]:
  """Whether the rows that are not done fit into as many blocks of `size` rows."""
  live = (~done).reshape(blocks, -1).sum(axis=1)
  return ((live + size - 1) // size).sum() <= blocks


def plan_move(done: np.ndarray, blocks: int, size: int) -> Move | None:
  """The move into blocks of `size` rows, or None where the survivors do not fit.

  Args:
    done: `[R]`.
    blocks: P.
    size: rows of a new block.
  """
  found: list[tuple[int, np.ndarray]] = []
  for block, live in enumerate((~done).reshape(blocks, -1)):
    own = np.flatnonzero(live) + block * live.size
    found += [(block, own[start : start + size]) for start in range(0, own.size, size)]
  if len(found) > blocks:
    return None
  move = Move(
    np.zeros(blocks, np.int32), np.zeros((blocks, size), np.int32), np.zeros((blocks, size), bool)
  )
  for place, (block, own) in enumerate(found):
    move.blocks[place] = block
    move.rows[place] = own[0]
    move.rows[place, : own.size] = own
    move.kept[place, : own.size] = True
  return Move(move.blocks, move.rows.reshape(-1), move.kept.reshape(-1))


@jax.jit
def moved(
  state: Any,
  prompt_lengths: Int[Array, "P"],
  prompt_cache: Any,
  uniforms: Array,
  move: Move,
) -> tuple[Any, Array, Any, Array]:
  """The decode state, prompts and uniforms of the rows that move.

  Args:
    state: a `DecodeState` of R rows.
    prompt_lengths, prompt_cache: of P blocks.
    uniforms: `[T_c, R, 2]`.
    move: from `plan_move`.
  """

  def take_rows(leaf: Array) -> Array:
    return leaf[move.rows]

  def take_blocks(leaf: Array) -> Array:
    return leaf[move.blocks]

  rest = jax.tree.map(take_rows, state._replace(step=None))
  state = rest._replace(step=state.step, done=rest.done | ~move.kept)
  return (
    state,
    take_blocks(prompt_lengths),
    jax.tree.map(take_blocks, prompt_cache),
    uniforms[:, move.rows],
  )
