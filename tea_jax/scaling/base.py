"""What searches are made of: a source of rollouts, a schedule, a result, and the record of draws.

A search tree has one level: node 0 is the prompt, node 1 + i the state (partial answer) cut from
the prompt's rollout i. P prompts, S nodes of a request, K states, m rollouts of a node.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Bool, Float, Int

from tea_jax.runtime import processes
from tea_jax.tail.gaussian import check_budget


class RolloutSource(Protocol):
  """Generates and scores the rollouts that a search asks for.

  Rollouts of a node are numbered; the same number is the same rollout, so searches and budgets can
  share them.
  """

  @property
  def num_prompts(self) -> int:
    """P."""
    ...

  def draw(
    self,
    nodes: Int[np.ndarray, "P S"],
    first: Int[np.ndarray, "P S"],
    counts: Int[np.ndarray, "P S"],
  ) -> Float[np.ndarray, "P S max_count"]:
    """Rewards of rollouts `first ... first + counts - 1` of each node.

    NaN beyond a node's count, and where a rollout could not be scored.
    """
    ...

  def extendable(self, num_rollouts: int) -> Bool[np.ndarray, "P num_rollouts"]:
    """Which of the first rollouts of the prompts go on beyond their state."""
    ...


class Schedule(NamedTuple):
  """How a search explores: `samples` (m) rollouts of the prompt and of each of `states` (K)."""

  samples: int
  states: int


class SearchResult(NamedTuple):
  """What a search drew, in order; N rollouts of each prompt.

  Attributes:
    rewards: `[P, N]`, NaN where a rollout could not be scored.
    nodes: `[P, N]` node of each rollout.
    rollouts: `[P, N]` its number within the node.
    candidates: `[P, 1 + K]` nodes that the search chose between, -1 where there was none.
    values: `[P, 1 + K]` what it thought of them; NaN where it had no reward.
    focus: `[P]` the node that it spent the rest on.
  """

  rewards: Float[np.ndarray, "P N"]
  nodes: Int[np.ndarray, "P N"]
  rollouts: Int[np.ndarray, "P N"]
  candidates: Int[np.ndarray, "P candidates"]
  values: Float[np.ndarray, "P candidates"]
  focus: Int[np.ndarray, "P"]

  @property
  def best(self) -> Int[np.ndarray, "P"]:
    """Column of the best rollout, the first of ties; -1 where none could be scored."""
    known = np.where(np.isnan(self.rewards), -np.inf, self.rewards)
    return np.where(np.isfinite(known).any(axis=1), known.argmax(axis=1), -1)

  @property
  def best_reward(self) -> Float[np.ndarray, "P"]:
    """`[P]` reward of the best rollout; NaN where none could be scored."""
    found = np.take_along_axis(self.rewards, np.maximum(self.best, 0)[:, None], axis=1)[:, 0]
    return np.where(self.best >= 0, found, np.nan)


def search_schedule(budget: int) -> Schedule:
  """m(N) = max(20, 5 round(ln(N)^3 / 25)), K(N) = max(2, min(round(N / 2m), floor(N / (m + 2)))).

  Args:
    budget: N.

  Source: the released code of arXiv 2602.01485; halves round to even.
  """
  check_budget(budget)
  samples = max(20, 5 * round(np.log(budget) ** 3 / 25))
  return Schedule(samples, max(2, min(round(budget / (2 * samples)), budget // (samples + 2))))


class Ledger:
  """What a search has drawn so far, of exactly N rollouts a prompt."""

  def __init__(self, source: RolloutSource, budget: int):
    check_budget(budget)
    self.source, self.budget = source, budget
    shape = (source.num_prompts, budget)
    self._rewards = np.full(shape, np.nan)
    self._nodes, self._rollouts = np.full(shape, -1), np.full(shape, -1)
    self._used = np.zeros(source.num_prompts, np.int64)

  @property
  def left(self) -> Int[np.ndarray, "P"]:
    """Rollouts that each prompt has left."""
    return self.budget - self._used

  def draw(
    self, nodes: Int[np.ndarray, "P S"], counts: Int[np.ndarray, "P S"]
  ) -> Float[np.ndarray, "P S max_count"]:
    """Draws the next `counts` rollouts of the nodes, each node once in a call."""
    if processes.several():
      # Numbers that differed in a last bit would leave them waiting for each other.
      nodes, counts = (np.array(each) for each in processes.agree([nodes, counts]))
    width = int(counts.max(initial=0))
    if width == 0:
      return np.full((*nodes.shape, 0), np.nan)
    first = np.stack([(self._nodes == column[:, None]).sum(1) for column in nodes.T], axis=1)
    rewards = np.asarray(self.source.draw(nodes, first, counts), np.float64)
    if rewards.shape != (*nodes.shape, width):
      raise ValueError(
        f"the source gave rewards of shape {rewards.shape}; {(*nodes.shape, width)} were asked for"
      )
    wanted = np.arange(width) < counts[..., None]
    prompt, slot, offset = np.nonzero(wanted)
    place = self._used[:, None] + np.cumsum(wanted.reshape(len(nodes), -1), axis=1) - 1
    column = place.reshape(wanted.shape)[wanted]
    self._rewards[prompt, column] = rewards[wanted]
    self._nodes[prompt, column] = nodes[prompt, slot]
    self._rollouts[prompt, column] = first[prompt, slot] + offset
    self._used += counts.sum(axis=1)
    return np.where(wanted, rewards, np.nan)

  def grouped(
    self, candidates: Int[np.ndarray, "P S"], width: int
  ) -> Float[np.ndarray, "P S width"]:
    """Rewards by node, NaN for what is not there."""
    groups = np.full((*candidates.shape, width), np.nan)
    for slot, column in enumerate(candidates.T):
      prompt, place = np.nonzero((self._nodes == column[:, None]) & (column[:, None] >= 0))
      groups[prompt, slot, self._rollouts[prompt, place]] = self._rewards[prompt, place]
    return groups

  def result(
    self,
    candidates: Int[np.ndarray, "P S"] | None = None,
    values: Float[np.ndarray, "P S"] | None = None,
    focus: Int[np.ndarray, "P"] | None = None,
  ) -> SearchResult:
    """What was drawn, with what the search chose between."""
    prompts = self.source.num_prompts
    return SearchResult(
      self._rewards,
      self._nodes,
      self._rollouts,
      np.zeros((prompts, 1), np.int64) if candidates is None else candidates,
      np.full((prompts, 1), np.nan) if values is None else values,
      np.zeros(prompts, np.int64) if focus is None else focus,
    )
