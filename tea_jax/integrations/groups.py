"""Flat rewards of a host trainer to groups, a rule's advantages back to flat rows.

Hosts hand over one reward a row: `[rows]` numpy, in groups that lie together (Tunix, TRL) or are
named by an id in any order (verl). A rule wants `[prompts, num_rollouts]`. Everything here is
numpy; the rule itself runs in JAX on the CPU, whatever the host computes on.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from tea_jax.advantages.registry import from_function, make_advantage
from tea_jax.advantages.rule import GroupRule
from tea_jax.runtime.keys import make_key

HOST_INPUTS = ("key",)


class Groups(NamedTuple):
  """Rewards of a batch in groups.

  Attributes:
    rewards: `[prompts, num_rollouts]` float32, 0 where `where` is False.
    where: `[prompts, num_rollouts]`, True for the rollouts that count; None when all do.
    rows: `[prompts, num_rollouts]` int, the host's row of each rollout; -1 for a place that the
      fuller groups have and this one has not.
    num_rows: of the host's batch.
  """

  rewards: np.ndarray
  where: np.ndarray | None
  rows: np.ndarray
  num_rows: int


def contiguous_groups(rewards, num_rollouts: int, *, unscored: bool = False) -> Groups:
  """Groups of rows that lie together: the first `num_rollouts` are the first prompt, and so on.

  Args:
    rewards: `[prompts * num_rollouts]`.
    num_rollouts: rows of each prompt.
    unscored: NaN marks a rollout without a reward, which then does not count; False refuses NaN.

  Raises:
    ValueError: if the rows are no whole number of groups, or a reward is not finite.
  """
  rewards = _checked_rewards(rewards, unscored)
  if num_rollouts < 1 or len(rewards) % num_rollouts:
    raise ValueError(
      f"{len(rewards)} rewards are no whole number of groups of num_rollouts={num_rollouts}"
    )
  rows = np.arange(len(rewards)).reshape(-1, num_rollouts)
  return _gather(rewards, rows)


def groups_by_id(rewards, ids: Iterable[Any], *, unscored: bool = False) -> Groups:
  """Groups of the rows that share an id: any order of rows, any size of group.

  Groups come in the order of their first rows, and so do the rollouts of a group.

  Args:
    rewards: `[rows]`.
    ids: `[rows]` hashable ids of the prompts.
    unscored: see `contiguous_groups`.

  Raises:
    ValueError: if there are not as many ids as rewards, or a reward is not finite.
  """
  rewards = _checked_rewards(rewards, unscored)
  members: dict[Any, list[int]] = {}
  for row, name in enumerate(ids):
    members.setdefault(name, []).append(row)
  counted = sum(map(len, members.values()))
  if counted != len(rewards):
    raise ValueError(
      f"{len(rewards)} rewards came with {counted} group ids; one id a row is needed"
    )
  rows = np.full((len(members), max(map(len, members.values()), default=0)), -1)
  for place, group in zip(rows, members.values(), strict=True):
    place[: len(group)] = group
  return _gather(rewards, rows)


class HostRule:
  """An advantage rule as a host calls it: groups of numpy rewards in, one advantage a row out.

  The prompt axis is padded to a power of two, so that the rule is compiled once a shape, and the
  rule runs on the CPU, so that it takes no memory from the host's accelerator.

  Args:
    rule: an `AdvantageRule`, a plain function of rewards, or the name of a registered rule.
    seed: of the orders that rules draw, and of `shuffle`.
    shuffle: give the rule each group in a random order. None: for rules that were told to take
      rollouts as they come (`shuffle=False`), since hosts order them by time or length.

  Raises:
    ValueError: if the rule needs inputs that hosts don't hand over, such as log-probabilities.
  """

  def __init__(
    self, rule: GroupRule | Callable[..., Any] | str, *, seed: int = 0, shuffle: bool | None = None
  ):
    self.rule = as_rule(rule)
    self.seed = seed
    self.shuffle = self.rule.parameters.get("shuffle") is False if shuffle is None else shuffle

  def __call__(self, groups: Groups, *, step: Sequence[int] = (0,)) -> np.ndarray:
    """`[rows]` float32 advantages; 0 for rollouts that do not count.

    Args:
      groups: of the batch.
      step: what the random orders depend on beside the seed: the same numbers, the same orders.
    """
    rewards, where, rows = groups.rewards, groups.where, groups.rows
    advantages = np.zeros(groups.num_rows, np.float32)
    if not rows.size:
      return advantages
    if self.shuffle:
      places = np.broadcast_to(np.arange(rows.shape[1]), rows.shape)
      order = np.random.default_rng((self.seed, *step)).permuted(places, axis=1)
      rewards, rows = (np.take_along_axis(x, order, 1) for x in (rewards, rows))
      where = None if where is None else np.take_along_axis(where, order, 1)
    num_prompts = len(rows)
    padding = [(0, 2 ** (num_prompts - 1).bit_length() - num_prompts), (0, 0)]
    where = None if where is None else np.pad(where, padding)
    with on_cpu():
      key = None
      if "key" in (*self.rule.needs, *self.rule.accepts):
        key = make_key(self.seed)
        for number in step:
          key = jax.random.fold_in(key, number)
      result = self.rule(np.pad(rewards, padding), key=key, where=where)
    present = rows >= 0
    advantages[rows[present]] = np.asarray(result)[:num_prompts][present]
    return advantages


def as_rule(rule: GroupRule | Callable[..., Any] | str) -> GroupRule:
  """A rule that a host can serve, from a rule, a plain function of rewards or a registered name.

  Raises:
    ValueError: if it needs inputs that hosts don't hand over, or carries statistics between steps.
  """
  if isinstance(rule, str):
    rule = make_advantage(rule)
  elif not isinstance(rule, GroupRule):
    rule = from_function(getattr(rule, "__name__", type(rule).__name__), rule)
  missing = [name for name in rule.needs if name not in HOST_INPUTS]
  if rule.tracker is not None or missing:
    what = f"needs {', '.join(missing)}" if missing else "carries statistics from step to step"
    raise ValueError(
      f"advantage rule {rule!r} {what}; trainers hand over rewards only, so use a rule of rewards "
      "(tea, prefix_tea, subset_tea, max_at_k, grpo, ...) or train with tea_jax's own trainer"
    )
  return rule


def pin_jax_to_cpu() -> None:
  """Keeps JAX off the accelerators of a torch process; call it before JAX computes anything.

  Does nothing where the user has chosen JAX's platforms.
  """
  os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
  if not jax.config.jax_platforms:  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_platforms", "cpu")


def on_cpu() -> contextlib.AbstractContextManager:
  """Context in which JAX computes on this process's CPU, where it has that platform."""
  try:
    return jax.default_device(jax.local_devices(backend="cpu")[0])
  except RuntimeError:  # JAX_PLATFORMS names accelerators only
    return contextlib.nullcontext()


_warned: set[str] = set()


def warn_once(messages: Iterable[str]) -> None:
  """Issues each message once in this process."""
  for message in messages:
    if message not in _warned:
      _warned.add(message)
      warnings.warn(message, UserWarning, stacklevel=3)


def _checked_rewards(rewards, unscored: bool) -> np.ndarray:
  rewards = np.asarray(rewards, np.float64)
  if rewards.ndim != 1:
    raise ValueError(f"rewards must be [rows], one a rollout; got shape {rewards.shape}")
  # A float64 beyond float32's range would arrive at the rule as infinity.
  bad = ~(np.abs(rewards) <= np.finfo(np.float32).max)
  if unscored:
    bad &= ~np.isnan(rewards)
  if bad.any():
    row = int(np.argmax(bad))
    raise ValueError(
      f"the reward of row {row} is {rewards[row]}: a reward must be a finite float32"
      + (", or None where it does not apply" if unscored else "")
    )
  return rewards


def _gather(rewards: np.ndarray, rows: np.ndarray) -> Groups:
  """Groups from each place's row; a row of -1 and a NaN do not count."""
  values = np.where(rows >= 0, rewards[rows], np.nan) if rewards.size else np.zeros(rows.shape)
  where = ~np.isnan(values)
  values = np.where(where, values, 0).astype(np.float32)
  return Groups(values, None if where.all() else where, rows, len(rewards))
