"""A batch cut into micro-batches that devices divide, and what they give put together again.

Axes: P prompts, m rollouts of each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from tea_jax.rollout.types import Rollouts
from tea_jax.runs.group_cut import micro_batch_shape, spread_factor
from tea_jax.runs.length_cut import bucket_widths, length_cut
from tea_jax.training.length_buckets import PER_PROMPT, by_width, cut_by_length

Tree = Any


class MicroBatches(NamedTuple):
  """A batch in pieces.

  Attributes:
    arrays: `[n, p, r, ...]`, those of prompts `[n, p, ...]`.
    join: puts a result `[n, p, r, ...]` back to `[P, m, ...]`.
    widths: compiled widths of the completions, see `by_width`; empty for the one that they have.
  """

  arrays: Tree
  join: Callable[[Array], Array]
  widths: tuple[int, ...] = ()


def cut_batch(
  tree: Tree, micro_batch_rollouts: int, *, length_buckets: int = 1, shards: int = 1
) -> MicroBatches | None:
  """The micro-batches of a batch, or None where it is one and has one width.

  Args:
    tree: arrays `[P, m, ...]` by name, as `as_arrays` gives them.
    micro_batch_rollouts: of one micro-batch; 0 for the whole batch, or, with several widths, for as
      many micro-batches as widths.
    length_buckets: widths of completions that are compiled.
    shards: parts into which the devices split the rollouts.
  """
  prompts, rollouts = tree["lengths"].shape
  if length_buckets > 1:
    cut = length_cut(prompts, rollouts, micro_batch_rollouts, length_buckets, shards=shards)
    widths = bucket_widths(tree["tokens"].shape[-1], length_buckets)
    return MicroBatches(*cut_by_length(tree, cut), widths)
  if (micro_batch_rollouts or prompts * rollouts) >= prompts * rollouts:
    return None
  spread = spread_groups(tree, shards)
  own: tuple[int, int] = spread["lengths"].shape
  shape = micro_batch_shape(*own, micro_batch_rollouts, shards=shards)

  def join(leaf: Array) -> Array:
    joined = join_micro_batches(leaf, *own)
    return joined.reshape(prompts, rollouts, *joined.shape[2:])

  return MicroBatches(split_micro_batches(spread, shape), join)


def split_micro_batches(tree: Tree, shape: tuple[int, int]) -> Tree:
  """Reshapes the leaves `[P, m, ...]` of a batch to `[n, p, r, ...]`, micro-batches of p x r.

  `Rollouts.prompt_*`, whose leaves are `[P, ...]`, are repeated when a group is split.
  """
  (prompts, rollouts), (height, width) = tree["lengths"].shape, shape
  parts = rollouts // width

  # Strided, so that an axis that is split over prompts stays split inside a micro-batch.
  def split(name: str, leaf: Array) -> Array:
    if name in PER_PROMPT:
      rest = leaf.shape[1:]
      leaf = jnp.repeat(jnp.swapaxes(leaf.reshape(height, -1, *rest), 0, 1), parts, axis=0)
      return leaf
    leaf = leaf.reshape(height, prompts // height, parts, width, *leaf.shape[2:])
    return jnp.moveaxis(leaf, 0, 2).reshape(-1, height, width, *leaf.shape[4:])

  return {name: None if leaf is None else split(name, leaf) for name, leaf in tree.items()}


def join_micro_batches(leaf: Array, prompts: int, rollouts: int) -> Array:
  """Inverse of `split_micro_batches` for a leaf `[n, p, r, ...]`: back to `[P, m, ...]`."""
  _, height, width, *rest = leaf.shape
  leaf = leaf.reshape(prompts // height, rollouts // width, height, width, *rest)
  return jnp.moveaxis(leaf, 2, 0).reshape(prompts, rollouts, *rest)


def spread_groups(tree: Tree, shards: int) -> Tree:
  """Cuts groups `[P, m, ...]` to `[P f, m / f, ...]` so that devices divide the leading axis.

  f is `spread_factor`; the prompt of a cut group is repeated.
  """
  prompts, rollouts = tree["lengths"].shape
  factor = spread_factor(prompts, rollouts, shards)

  def cut(name: str, leaf: Array | None) -> Array | None:
    if leaf is None or factor == 1:
      return leaf
    if name in PER_PROMPT:
      return jnp.repeat(leaf, factor, axis=0)
    return leaf.reshape(prompts * factor, rollouts // factor, *leaf.shape[2:])

  return {name: cut(name, leaf) for name, leaf in tree.items()}


def as_rollouts(micro: dict[str, Array]) -> Rollouts:
  """The rollouts of a micro-batch, for the policy."""
  return Rollouts(
    prompt_tokens=micro["prompt_tokens"],
    prompt_lengths=micro["prompt_lengths"],
    completion_tokens=micro["tokens"],
    completion_lengths=micro["lengths"],
    finished=micro["finished"],
    logprobs=micro["sampler_logprobs"],
    sampling_logprobs=micro["sampler_logprobs"],
  )


def as_arrays(rollouts: Rollouts) -> dict[str, Array]:
  """What of rollouts is cut into micro-batches."""
  return {
    "prompt_tokens": rollouts.prompt_tokens,
    "prompt_lengths": rollouts.prompt_lengths,
    "tokens": rollouts.completion_tokens,
    "lengths": rollouts.completion_lengths,
    "finished": rollouts.finished,
    "sampler_logprobs": rollouts.logprobs,
  }


def summed_gradient(
  loss_of: Callable[[Tree, Tree], tuple[Array, Tree]],
  trainable: Tree,
  micro_batches: Tree,
  widths: tuple[int, ...] = (),
) -> tuple[Array, Tree, Tree]:
  """`(loss, gradient, stacked extras)`, added up over the leading axis of `micro_batches`.

  Args:
    loss_of: `(trainable, micro-batch) -> (loss, extras)`; losses of micro-batches add up.
    trainable: parameters.
    micro_batches: arrays `[n, ...]`.
    widths: see `by_width`; extras are then `[p, r, T]`.
  """
  value_and_grad = jax.value_and_grad(loss_of, has_aux=True)

  def compute(micro: Tree) -> tuple[Tree, Tree]:
    (loss, extras), gradient = value_and_grad(trainable, micro)
    return (loss, gradient), extras

  compute_any = by_width(compute, widths) if widths else compute

  def accumulate(total: Tree, micro: Tree) -> tuple[Tree, Tree]:
    (loss, gradient), extras = compute_any(micro)
    return jax.tree.map(jnp.add, total, (loss, gradient)), extras

  zeros = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, trainable))
  (loss, gradient), extras = jax.lax.scan(accumulate, zeros, micro_batches)
  return loss, gradient, extras
