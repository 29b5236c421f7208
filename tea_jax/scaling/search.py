"""Searches that spend N rollouts of a prompt: best-of-N, and four that branch at partial answers.

Shaped like mctx: decisions are jitted functions of rewards, what generates and scores is passed in
as a `RolloutSource`, and all P prompts advance together, one request a phase. A search tree has one
level: node 0 is the prompt, node 1 + i the state (partial answer) cut from the prompt's rollout i.
Every search uses exactly N rollouts of every prompt. P prompts, K states, m rollouts of a node.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from tea_jax.scaling.base import (
  Ledger,
  RolloutSource,
  Schedule,
  SearchResult,
  search_schedule,
)
from tea_jax.scaling.decisions import (
  choose_focus,
  choose_states,
  mean_values,
  node_values,
  upper_bounds,
)
from tea_jax.scaling.laws import Coefficient, Law

States = Literal["best", "first"]


def best_of_n(source: RolloutSource, budget: int) -> SearchResult:
  """N rollouts of the prompt.

  Args:
    source: of rollouts.
    budget: N.
  """
  ledger = Ledger(source, budget)
  ledger.draw(np.zeros((source.num_prompts, 1), np.int64), ledger.left[:, None])
  return ledger.result()


def branching_best_of_n(
  source: RolloutSource, budget: int, *, schedule: Schedule | None = None
) -> SearchResult:
  """K rollouts of the prompt, and the others spread evenly over the states cut from them.

  Args:
    source: of rollouts.
    budget: N.
    schedule: of `search_schedule` by default; only K is used.
  """
  schedule = search_schedule(budget) if schedule is None else schedule
  ledger = Ledger(source, budget)
  states = min(schedule.states, budget)
  ledger.draw(np.zeros((source.num_prompts, 1), np.int64), np.full((source.num_prompts, 1), states))
  allowed = source.extendable(states)
  nodes = np.where(allowed, np.arange(1, states + 1), 0)
  leaves = allowed.sum(axis=1)
  share, extra = np.divmod(ledger.left, np.maximum(leaves, 1))
  counts = np.where(allowed, share[:, None] + (np.cumsum(allowed, 1) <= extra[:, None]), 0)
  ledger.draw(nodes, counts)
  ledger.draw(np.zeros((source.num_prompts, 1), np.int64), ledger.left[:, None])
  return ledger.result()


def scaling_law_search(
  source: RolloutSource,
  budget: int,
  *,
  schedule: Schedule | None = None,
  states: States = "best",
  law: Law = "gaussian_tail",
  tail_fraction: float = 0.2,
  coefficient: Coefficient = "expected_maximum",
) -> SearchResult:
  """Predicts the best-of-N value of the prompt and of K states from m rollouts each, and commits.

  1. m rollouts of the prompt; 2. m rollouts of each of K states cut from them; 3. all others to the
  prompt or state with the greatest predicted value, ties to the prompt, then to the better pilot.

  Args:
    source: of rollouts.
    budget: N; every request is capped by what is left of it.
    schedule: m and K, of `search_schedule` by default.
    states: "best" cuts the states from the K best rollouts (the released code), "first" from the
      first K (states drawn from the policy, as the paper has them).
    law, tail_fraction, coefficient: of `predict_best_of_n`.

  Example:
    >>> source = tea_jax.scaling.TwoLevelGaussian(num_prompts=100, seed=0)
    >>> scaling_law_search(source, 300).best_reward.shape
    (100,)

  Source: arXiv 2602.01485, Algorithm 1, and its released code.
  """
  if law == "empirical":
    raise ValueError("law='empirical' cannot predict beyond its rollouts; name a tail law")
  value = functools.partial(
    node_values, budget=budget, law=law, tail_fraction=tail_fraction, coefficient=coefficient
  )
  return _explore_and_commit(source, budget, schedule, states, value, root_competes=True)


def mean_guided_search(
  source: RolloutSource,
  budget: int,
  *,
  schedule: Schedule | None = None,
  states: States = "best",
) -> SearchResult:
  """As `scaling_law_search`, but commits to the state with the greatest mean reward.

  Args:
    source, budget, schedule, states: see `scaling_law_search`.
  """
  return _explore_and_commit(source, budget, schedule, states, mean_values, root_competes=False)


def ucb_search(
  source: RolloutSource,
  budget: int,
  *,
  schedule: Schedule | None = None,
  states: States = "best",
  exploration: float = 1.0,
  batch: int | None = None,
) -> SearchResult:
  """A bandit over the prompt and K states: each round goes to the greatest upper bound of the mean.

  mean_i + exploration sd sqrt(2 log(t) / n_i), sd of all t rewards of the prompt so far

  Args:
    source, budget, schedule, states: see `scaling_law_search`.
    exploration: width of the bound.
    batch: rollouts of a round; a fifth of m by default.

  Source: UCB1, Auer, Cesa-Bianchi and Fischer, Machine Learning 47 (2002).
  """
  schedule = search_schedule(budget) if schedule is None else schedule
  batch = max(1, schedule.samples // 5) if batch is None else batch
  if batch < 1:
    raise ValueError(f"batch={batch} must be at least 1 rollout a round")
  ledger = Ledger(source, budget)
  candidates = _pilots_and_states(ledger, schedule, states, per_state=batch)
  rewards = ledger.grouped(candidates, max(schedule.samples, batch))
  known = ~np.isnan(rewards)
  # Sums of squares about a typical reward of the prompt keep their precision.
  centre = np.where(known, rewards, 0.0).sum((1, 2)) / np.maximum(known.sum((1, 2)), 1)
  moments = _moments(rewards, centre)
  values, focus = upper_bounds(*moments, exploration), np.zeros(len(candidates), np.int64)
  while ledger.left.any():
    values = upper_bounds(*moments, exploration)
    column = np.asarray(choose_focus(values))
    focus = np.take_along_axis(candidates, column[:, None], axis=1)
    rewards = ledger.draw(focus, np.minimum(batch, ledger.left)[:, None])[:, 0]
    moments[:, np.arange(len(column)), column] += _moments(rewards, centre)
  return ledger.result(candidates, np.asarray(values), focus.reshape(len(candidates)))


def _moments(rewards: np.ndarray, centre: np.ndarray) -> np.ndarray:
  """Number, sum and sum of squares of rewards `[P, ..., m]` about `[P]`; NaN does not count."""
  shifted = rewards - centre.reshape(-1, *[1] * (rewards.ndim - 1))
  known = ~np.isnan(shifted)
  shifted = np.where(known, shifted, 0.0)
  return np.stack([known.sum(-1), shifted.sum(-1), (shifted**2).sum(-1)])


def _explore_and_commit(
  source: RolloutSource,
  budget: int,
  schedule: Schedule | None,
  states: States,
  value: Callable[[Array], Array],
  root_competes: bool,
) -> SearchResult:
  schedule = search_schedule(budget) if schedule is None else schedule
  ledger = Ledger(source, budget)
  candidates = _pilots_and_states(ledger, schedule, states, per_state=schedule.samples)
  rewards = jnp.asarray(ledger.grouped(candidates, schedule.samples))
  values = np.asarray(value(rewards), np.float64)
  competing = values.copy()
  if not root_competes:
    competing[:, 0] = np.nan
  focus = np.take_along_axis(candidates, np.asarray(choose_focus(competing))[:, None], axis=1)
  ledger.draw(focus, ledger.left[:, None])
  return ledger.result(candidates, values, focus[:, 0])


def _pilots_and_states(
  ledger: Ledger, schedule: Schedule, states: States, per_state: int
) -> Int[np.ndarray, "P candidates"]:
  """Draws pilots and up to `per_state` rollouts of each state; `[P, 1 + K]` nodes, -1 for none."""
  if schedule.samples < 1 or schedule.states < 0:
    raise ValueError(f"{schedule} needs at least 1 sample and no negative number of states")
  if states not in ("best", "first"):
    raise ValueError(f"states={states!r} must be 'best' or 'first'")
  source = ledger.source
  root = np.zeros((source.num_prompts, 1), np.int64)
  pilots = min(schedule.samples, int(ledger.left[0]))
  rewards = ledger.draw(root, np.full(root.shape, pilots))[:, 0]
  # The first K that may be chosen are the K best when rewards say nothing.
  ranked = rewards if states == "best" else np.where(np.isnan(rewards), np.nan, 0.0)
  num_states = min(schedule.states, pilots)
  chosen = np.asarray(choose_states(ranked, source.extendable(pilots), num_states=num_states))
  chosen = np.where(chosen >= 0, chosen + 1, -1).astype(np.int64)
  leaves = np.maximum((chosen > 0).sum(axis=1), 1)
  each = np.minimum(per_state, ledger.left // leaves)
  counts = np.where(chosen > 0, each[:, None], 0)
  ledger.draw(np.maximum(chosen, 0), counts)
  return np.concatenate([root, chosen], axis=1)
