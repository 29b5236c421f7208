"""Micro-batches of similar length, each computed in the narrowest compiled width that holds it.

Weights of tokens are those of the whole batch, so the gradients of any cut add up to the same.

Axes: P prompts, m rollouts of each, T completion tokens; n micro-batches of u units, each of w
rollouts of one prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from tea_jax.runs.length_cut import LengthCut

Tree = Any
PER_PROMPT = ("prompt_tokens", "prompt_lengths")
"""Arrays of a batch that have no axis of rollouts."""


def cut_by_length(tree: Tree, cut: LengthCut) -> tuple[Tree, Callable[[Array], Array]]:
  """Sorts a group's rollouts by length, and then the units of all groups by their longest.

  Args:
    tree: arrays `[P, m, ...]` of a batch by name, and those of its prompts.
    cut: shape of a micro-batch.

  Returns:
    Arrays `[n, u, w, ...]`, prompts `[n, u, ...]`, and the function that puts a result
    `[n, u, w, ...]` back to `[P, m, ...]`.
  """
  prompts, rollouts = tree["lengths"].shape
  within = jnp.argsort(tree["lengths"], axis=1)
  rows = (jnp.arange(prompts)[:, None] * rollouts + within).reshape(-1, cut.rollouts)
  longest = tree["lengths"].reshape(-1)[rows[:, -1]]
  rows = rows[jnp.argsort(longest)].reshape(-1, cut.units, cut.rollouts)

  def take(name: str, leaf: Array | None) -> Array | None:
    if leaf is None:
      return None
    if name in PER_PROMPT:
      return leaf[rows[..., 0] // rollouts]
    return leaf.reshape(-1, *leaf.shape[2:])[rows]

  def join(leaf: Array) -> Array:
    flat = leaf.reshape(-1, *leaf.shape[3:])
    return (
      jnp.zeros_like(flat)
      .at[rows.reshape(-1)]
      .set(flat)
      .reshape(tree["lengths"].shape + flat.shape[1:])
    )

  return {name: take(name, leaf) for name, leaf in tree.items()}, join


def by_width(
  compute: Callable[[Tree], tuple[Tree, Tree]], widths: tuple[int, ...]
) -> Callable[[Tree], tuple[Tree, Tree]]:
  """`compute` in the narrowest of `widths` that holds the micro-batch; all of them are compiled.

  Args:
    compute: `micro-batch -> (anything, values of tokens [u, w, T])`.
    widths: ascending, the last one T.
  """

  def branch(width: int) -> Callable[[Tree], tuple[Tree, Tree]]:
    def narrowed(micro: Tree) -> tuple[Tree, Tree]:
      own = {
        name: leaf[..., :width] if leaf is not None and leaf.ndim == 3 else leaf
        for name, leaf in micro.items()
      }
      result, values = compute(own)
      padding = ((0, 0), (0, 0), (0, widths[-1] - width))
      return result, jax.tree.map(lambda value: jnp.pad(value, padding), values)

    return narrowed

  def choose(micro: Tree) -> tuple[Tree, Tree]:
    index = jnp.searchsorted(jnp.asarray(widths), jnp.max(micro["lengths"]))
    return jax.lax.switch(index, [branch(width) for width in widths], micro)

  return choose
