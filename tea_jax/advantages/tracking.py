"""Statistics that a rule carries from step to step, as explicit state.

Compute-aligned weights need the quantile of a reward, or the votes that win a majority, at the
deployment budget; a small group shows them only coarsely. These trackers estimate them over recent
steps. The state is a NamedTuple of arrays, passed in and returned, so that it can be jitted and
saved in a checkpoint; nothing is hidden in a rule.

Source: arXiv 2604.24957, section B.7.2, eqs. 80, 105 and the text between them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from tea_jax.advantages.votes import votes_to_win


class Tracker(NamedTuple):
  """How a rule's statistics start and move.

  Attributes:
    init: `() -> state`.
    observe: `(state, rewards, *, step, where, answers) -> (named inputs of the rule, next state)`;
      the inputs are computed before the rewards enter the state.
    needs_answers: whether `observe` needs `answers`.
  """

  init: Callable[[], Any]
  observe: Callable[..., tuple[dict[str, Array], Any]]
  needs_answers: bool = False


class RewardBuffer(NamedTuple):
  """The last `capacity` rewards, first in first out.

  Attributes:
    rewards: `[capacity]` float32.
    steps: `[capacity]` int32, the training step at which each reward came.
    total: scalar int32, rewards ever appended, modulo 2^30 above the capacity; slot
      `total % capacity` is written next.
  """

  rewards: Float[Array, "capacity"]
  steps: Int[Array, "capacity"]
  total: Int[Array, ""]


def reward_buffer(capacity: int = 4000) -> RewardBuffer:
  """An empty buffer.

  Raises:
    ValueError: if `capacity` is not positive.
  """
  if capacity < 1:
    raise ValueError(f"capacity={capacity} must be at least 1")
  return RewardBuffer(
    jnp.zeros(capacity, jnp.float32), jnp.zeros(capacity, jnp.int32), jnp.zeros((), jnp.int32)
  )


def append_rewards(
  buffer: RewardBuffer,
  rewards: Float[ArrayLike, "*batch num_rollouts"],
  *,
  step: int | Int[Array, ""],
  where: Bool[ArrayLike, "*batch num_rollouts"] | None = None,
) -> RewardBuffer:
  """Appends rewards in order; those outside `where` are left out, the oldest are dropped."""
  buffer = RewardBuffer(*map(jnp.asarray, buffer))  # restored checkpoints hold numpy arrays
  capacity = buffer.rewards.shape[0]
  flat = jax.lax.stop_gradient(jnp.asarray(rewards)).reshape(-1).astype(jnp.float32)
  counts = jnp.ones(flat.shape, bool) if where is None else jnp.asarray(where).reshape(-1)
  arrival = jnp.cumsum(counts) - 1
  appended = jnp.sum(counts, dtype=jnp.int32)
  # Of more than `capacity` new rewards only the last stay: no two writes go to one slot.
  stays = counts & (arrival >= appended - capacity)
  slot = jnp.where(stays, (buffer.total + arrival) % capacity, capacity)
  total = buffer.total + appended
  wrap = capacity * ((2**30) // capacity)
  return RewardBuffer(
    buffer.rewards.at[slot].set(flat, mode="drop"),
    buffer.steps.at[slot].set(jnp.asarray(step, jnp.int32), mode="drop"),
    # Keeps int32 from overflowing without losing that the buffer is full.
    jnp.where(total >= wrap + capacity, total - wrap, total),
  )


def reward_quantiles(
  buffer: RewardBuffer,
  rewards: Float[ArrayLike, "*batch num_rollouts"],
  *,
  step: int | Int[Array, ""] = 0,
  decay: float = 1.0,
  smoothing: float = 1.0,
  clip: tuple[float, float] = (0.001, 0.999),
) -> Float[Array, "*batch num_rollouts"]:
  """Share of tracked rewards strictly below each reward.

  q(r) = (sum_i w_i 1{r_i < r} + smoothing) / (sum_i w_i + 2 smoothing), w_i = decay^(age of i)

  Args:
    buffer: rewards of earlier steps, without those in question.
    rewards: `[..., num_rollouts]`.
    step: current training step; matters only with `decay < 1`.
    decay: 1 weighs the whole buffer equally (eq. 105); below 1, each step of age counts `decay`
      times less (eq. 80).
    smoothing: Laplace pseudo-count; 1 in eq. 105, 0 in eq. 80.
    clip: bounds of the result.

  Returns:
    `[..., num_rollouts]` float32 in [clip]; 0.5 while the buffer is empty.

  Raises:
    ValueError: if `decay` is not in (0, 1] or `smoothing` is negative.
  """
  if not 0 < decay <= 1:
    raise ValueError(f"decay={decay} must be in (0, 1]")
  if smoothing < 0:
    raise ValueError(f"smoothing={smoothing} must not be negative")
  buffer = RewardBuffer(*map(jnp.asarray, buffer))
  capacity = buffer.rewards.shape[0]
  filled = jnp.arange(capacity) < buffer.total
  age = jnp.asarray(step, jnp.int32) - buffer.steps
  # Only ratios count: the age of the newest reward is taken off so that no weight underflows.
  newest = jnp.min(jnp.where(filled, age, jnp.iinfo(jnp.int32).max))
  weight = jnp.where(filled, jnp.power(decay, (age - newest).astype(jnp.float32)), 0.0)
  order = jnp.argsort(jnp.where(filled, buffer.rewards, jnp.inf))
  below = jnp.concatenate([jnp.zeros(1), jnp.cumsum(weight[order])])
  sorted_rewards = jnp.where(filled, buffer.rewards, jnp.inf)[order]
  queries = jax.lax.stop_gradient(jnp.asarray(rewards)).astype(jnp.float32)
  index = jnp.searchsorted(sorted_rewards, queries.reshape(-1)).reshape(queries.shape)
  total = below[-1]
  quantile = (below[index] + smoothing) / jnp.where(total > 0, total + 2 * smoothing, 1.0)
  return jnp.where(total > 0, jnp.clip(quantile, *clip), 0.5)


class MovingThreshold(NamedTuple):
  """Exponential moving average of the votes that win a majority.

  Attributes:
    value: scalar float32.
    started: scalar bool, False before the first batch.
  """

  value: Float[Array, ""]
  started: Bool[Array, ""]


def moving_threshold() -> MovingThreshold:
  """An average that takes its first batch as it is."""
  return MovingThreshold(jnp.zeros((), jnp.float32), jnp.zeros((), bool))


def update_threshold(
  state: MovingThreshold, batch_threshold: Float[Array, ""], *, decay: float = 0.9
) -> MovingThreshold:
  """k <- decay k + (1 - decay) k_batch.

  Raises:
    ValueError: if `decay` is not in [0, 1).
  """
  if not 0 <= decay < 1:
    raise ValueError(f"decay={decay} must be in [0, 1)")
  batch_threshold = jnp.asarray(batch_threshold, jnp.float32)
  moved = decay * state.value + (1 - decay) * batch_threshold
  return MovingThreshold(jnp.where(state.started, moved, batch_threshold), jnp.ones((), bool))


def quantile_tracker(
  *, capacity: int = 4000, decay: float = 1.0, smoothing: float = 1.0
) -> Tracker:
  """Feeds `quantiles` from a `RewardBuffer`; see `reward_quantiles` for the arguments."""
  reward_buffer(capacity)

  def observe(state, rewards, *, step, where, answers):
    del answers
    quantiles = reward_quantiles(state, rewards, step=step, decay=decay, smoothing=smoothing)
    return {"quantiles": quantiles}, append_rewards(state, rewards, step=step, where=where)

  return Tracker(lambda: reward_buffer(capacity), observe)


def threshold_tracker(
  *, budget: int, success_threshold: float = 0.5, decay: float = 0.9
) -> Tracker:
  """Feeds `thresholds` from a `MovingThreshold` of the batch's mean majority threshold."""
  update_threshold(moving_threshold(), jnp.zeros(()), decay=decay)

  def observe(state, rewards, *, step, where, answers):
    del step
    of_group = votes_to_win(
      rewards, answers, budget=budget, success_threshold=success_threshold, where=where
    ).astype(jnp.float32)
    if where is None:
      of_batch, any_group = jnp.mean(of_group), True
    else:
      counts = jnp.any(where, -1)
      of_batch = jnp.sum(jnp.where(counts, of_group, 0)) / jnp.maximum(jnp.sum(counts), 1)
      any_group = jnp.any(counts)
    moved = update_threshold(state, of_batch, decay=decay)
    state_after = jax.tree.map(lambda new, old: jnp.where(any_group, new, old), moved, state)
    # The first batch has nothing before it and is judged by its own threshold.
    current = jnp.where(state.started, state.value, of_batch)
    return {"thresholds": current}, state_after

  return Tracker(moving_threshold, observe, needs_answers=True)
