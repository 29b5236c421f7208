"""A batch cut into micro-batches that devices divide, and what they give put together again.

Axes: P prompts, m rollouts of each.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from tea_jax.rollout.types import Rollouts

Tree = Any
_PER_PROMPT = ("prompt_tokens", "prompt_lengths")


def micro_batch_shape(
  prompts: int, rollouts: int, micro_batch_rollouts: int, *, shards: int = 1
) -> tuple[int, int]:
  """(prompts, rollouts of each) of a micro-batch: of every shard's prompts where they divide.

  Whole groups stay together while they fit, since a group computes its prompt once.

  Args:
    prompts, rollouts: P and m of the batch.
    micro_batch_rollouts: rollouts of a micro-batch, at most.
    shards: parts into which the devices split the prompts.
  """
  width = math.gcd(micro_batch_rollouts, rollouts)
  height = math.gcd(micro_batch_rollouts // width, prompts)
  own, rest = divmod(micro_batch_rollouts, shards)
  if height % shards and not (prompts % shards or rest or own == 0 or rollouts % own):
    return shards, own
  return height, width


def split_micro_batches(tree: Tree, shape: tuple[int, int]) -> Tree:
  """Reshapes the leaves `[P, m, ...]` of a batch to `[n, p, r, ...]`, micro-batches of p x r.

  `Rollouts.prompt_*`, whose leaves are `[P, ...]`, are repeated when a group is split.
  """
  (prompts, rollouts), (height, width) = tree["lengths"].shape, shape
  parts = rollouts // width

  # Strided, so that an axis that is split over prompts stays split inside a micro-batch.
  def split(name: str, leaf: Array) -> Array:
    if name in _PER_PROMPT:
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

  f is the smallest that does, 1 if none does; the prompt of a cut group is repeated.
  """
  prompts, rollouts = tree["lengths"].shape
  fitting = [f for f in range(1, shards + 1) if prompts * f % shards == 0 and rollouts % f == 0]
  factor = min(fitting, default=1)

  def cut(name: str, leaf: Array | None) -> Array | None:
    if leaf is None or factor == 1:
      return leaf
    if name in _PER_PROMPT:
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
  loss_of: Callable[[Tree, Tree], tuple[Array, Tree]], trainable: Tree, micro_batches: Tree
) -> tuple[Array, Tree, Tree]:
  """`(loss, gradient, stacked extras)`, added up over the leading axis of `micro_batches`.

  Args:
    loss_of: `(trainable, micro-batch) -> (loss, extras)`; losses of micro-batches add up.
    trainable: parameters.
    micro_batches: arrays `[n, ...]`.
  """
  value_and_grad = jax.value_and_grad(loss_of, has_aux=True)

  def accumulate(total: Tree, micro: Tree) -> tuple[Tree, Tree]:
    (loss, extras), gradient = value_and_grad(trainable, micro)
    return jax.tree.map(jnp.add, total, (loss, gradient)), extras

  zeros = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, trainable))
  (loss, gradient), extras = jax.lax.scan(accumulate, zeros, micro_batches)
  return loss, gradient, extras
