"""Estimators of the best-of-N policy gradient from one group of rewards and scores.

The score of a rollout is the gradient of its log-probability, given here explicitly as a row of
`scores [num_rollouts, dim]`: the form in which bias and variance can be proved and measured.
Training uses the same shaped rewards as advantages and never forms the scores.

All take one group, `(rewards [m], scores [m, d]) -> [d]`, and are made to be mapped over prompts
with `jax.vmap`.

| estimator | bias | variance | rollouts must be |
|---|---|---|---|
| `direct_gradient` | O(1/m) | O(1/m) | exchangeable |
| `cross_fitted_gradient` | O(1/m) | O(1/m) | independent |
| `prefix_gradient` | O(m^-(K+1)) | O(1/m), constant 30-50 times direct's | independent |
| `subset_averaged_gradient` | O(m^-(K+1)) | O(1/m), constant 1-3 times direct's | exchangeable |
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import chex
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray, Real

from tea_jax.tail.prefixes import DEFAULT_FRACTIONS, cancellation_weights, compatible_prefixes
from tea_jax.tail.shaping import shaped_reward
from tea_jax.tail.statistics import SCALE_FLOOR, as_rewards, tail_vector
from tea_jax.tail.subsets import Shaping, average_over_orders, cancelling_subsets, draw_orders


def _check_group(rewards: ArrayLike, scores: ArrayLike) -> tuple[Array, Array]:
  rewards = as_rewards(rewards)
  scores = jnp.asarray(scores)
  scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
  chex.assert_rank([rewards, scores], [1, 2])
  chex.assert_equal_shape_prefix([rewards, scores], 1)
  return rewards, scores


def _half(num_rollouts: int) -> int:
  if num_rollouts % 2 or num_rollouts < 2:
    raise ValueError(
      f"num_rollouts={num_rollouts} cannot be split into a fitting and an evaluation half; "
      "an even number of at least 2 is needed."
    )
  return num_rollouts // 2


def direct_gradient(
  rewards: Real[ArrayLike, "num_rollouts"],
  scores: Real[ArrayLike, "num_rollouts dim"],
  *,
  tail_fraction: float,
  budget: int,
  scale_floor: float = SCALE_FLOOR,
) -> Float[Array, "dim"]:
  """TEA, the direct plug-in: g = (1/m) sum_i psi(r_i; eta_hat(r_1..r_m)) score_i.

  Args:
    rewards: `[m]` rewards of a group.
    scores: `[m, d]` gradients of the log-probabilities.
    tail_fraction: alpha, in (0, 0.5].
    budget: N, at least `minimum_budget(tail_fraction)`.
    scale_floor: smallest tail scale, in units of reward.

  Returns:
    `[d]`; bias O(1/m), variance O(1/m).

  Example:
    >>> rewards = jnp.arange(8.0)
    >>> scores = jnp.stack([jnp.ones(8), rewards], axis=1)
    >>> print(direct_gradient(rewards, scores, tail_fraction=0.25, budget=128))
    [0.5 3.5]

  Source: arXiv 2605.10716, eq. 10 and 11.
  """
  rewards, scores = _check_group(rewards, scores)
  tail = tail_vector(rewards, tail_fraction, scale_floor=scale_floor)
  shaped = shaped_reward(rewards, tail, tail_fraction=tail_fraction, budget=budget)
  return shaped @ scores / rewards.shape[0]


def cross_fitted_gradient(
  rewards: Real[ArrayLike, "num_rollouts"],
  scores: Real[ArrayLike, "num_rollouts dim"],
  *,
  tail_fraction: float,
  budget: int,
  scale_floor: float = SCALE_FLOOR,
) -> Float[Array, "dim"]:
  """Fits the tail on the first half of the group and evaluates on the second.

  With n = m/2, A the first and B the last n rollouts: g = (1/n) sum_{i in B} psi(r_i; eta_hat(A))
  score_i. Given A this is unbiased for E[psi(r; eta_hat(A)) score], so that its bias is that of
  the fit alone, and expands in 1/n with coefficients that depend on n only through
  ceil(alpha n) - alpha n.

  Args:
    rewards: `[m]` rewards of a group, m even; independent, in an order free of their values.
    scores: `[m, d]` gradients of the log-probabilities.
    tail_fraction: alpha, in (0, 0.5].
    budget: N, at least `minimum_budget(tail_fraction)`.
    scale_floor: smallest tail scale, in units of reward. Here it matters, unlike in the direct
      estimator: a tail of 2 or 3 rollouts has a small scale so often that 1/scale has no variance.

  Returns:
    `[d]`.

  Raises:
    ValueError: if m is odd.

  Example:
    >>> rewards = jnp.array([0.0, 1.0, 0.0, 1.0, 0.0, 2.0, 0.0, 1.0])
    >>> scores = jnp.ones((8, 1))
    >>> print(cross_fitted_gradient(rewards, scores, tail_fraction=0.5, budget=8).shape)
    (1,)

  Source: arXiv 2605.10716, eq. 104.
  """
  rewards, scores = _check_group(rewards, scores)
  half = _half(rewards.shape[0])
  tail = tail_vector(rewards[:half], tail_fraction, scale_floor=scale_floor)
  shaped = shaped_reward(rewards[half:], tail, tail_fraction=tail_fraction, budget=budget)
  return shaped @ scores[half:] / half


def prefix_gradient(
  rewards: Real[ArrayLike, "num_rollouts"],
  scores: Real[ArrayLike, "num_rollouts dim"],
  *,
  tail_fraction: float,
  budget: int,
  order: int = 2,
  fractions: Sequence[float] = DEFAULT_FRACTIONS,
  objective: str = "norm",
  scale_floor: float = SCALE_FLOOR,
) -> Float[Array, "dim"]:
  """Prefix-TEA with a split budget: cross-fitted estimates of several sizes, bias cancelled.

  With n = m/2, A the first and B the last n rollouts, (n_j) = `compatible_prefixes(n)` and w their
  `cancellation_weights`:
  g = sum_j w_j (1/n_j) sum_{i <= n_j} psi(B_i; eta_hat(A_1..A_n_j)) score_i.

  Args:
    rewards: `[m]` rewards of a group, m even; independent, in an order free of their values.
    scores: `[m, d]` gradients of the log-probabilities.
    tail_fraction: alpha, in (0, 0.5].
    budget: N, at least `minimum_budget(tail_fraction)`.
    order: K, powers of 1/m cancelled in the bias; fewer than there are fractions.
    fractions: shares of the half that the prefixes take, strictly increasing in (0, 1].
    objective: see `cancellation_weights`.
    scale_floor: smallest tail scale, in units of reward.

  Returns:
    `[d]`; bias O(m^-(order + 1)), variance O(1/m).

  Raises:
    ValueError: if m is odd or too small for the prefixes.

  Example:
    >>> rewards = jax.random.normal(jax.random.key(0), (64,))
    >>> scores = jnp.stack([jnp.sin(rewards), jnp.cos(rewards)], axis=1)
    >>> prefix_gradient(rewards, scores, tail_fraction=0.25, budget=128).shape
    (2,)

  Source: arXiv 2605.10716, Theorem 2, eq. 123 and 124.
  """
  rewards, scores = _check_group(rewards, scores)
  half = _half(rewards.shape[0])
  sizes = compatible_prefixes(half, tail_fraction, fractions)
  weights = cancellation_weights(sizes, order, objective=objective)
  gradient = jnp.zeros(scores.shape[1], jnp.result_type(rewards, scores))
  for size, weight in zip(sizes, weights, strict=True):
    fit, evaluate = slice(0, size), slice(half, half + size)
    tail = tail_vector(rewards[fit], tail_fraction, scale_floor=scale_floor)
    shaped = shaped_reward(rewards[evaluate], tail, tail_fraction=tail_fraction, budget=budget)
    gradient += float(weight) / size * (shaped @ scores[evaluate])
  return gradient


def subset_averaged_gradient(
  rewards: Real[ArrayLike, "num_rollouts"],
  scores: Real[ArrayLike, "num_rollouts dim"],
  *,
  key: PRNGKeyArray,
  tail_fraction: float,
  budget: int,
  num_orders: int = 16,
  orders: Literal["reversed", "independent"] = "reversed",
  order: int = 1,
  fractions: Sequence[float] = (0.5, 1.0),
  objective: str = "norm",
  scale_floor: float = SCALE_FLOOR,
) -> Float[Array, "dim"]:
  """Prefix-TEA averaged over random orders of the group, every rollout fitting and evaluating.

  With sizes n_j and weights w_j of the whole group, S_pj the first n_j rollouts of the p-th of P
  random orders: g = sum_j w_j (1/P) sum_p (1/n_j) sum_{i in S_pj} psi(r_i; eta_hat(S_pj)) score_i.

  The rollouts are exchangeable, so each term has the expectation of the direct estimator of n_j
  rollouts, whatever P and whatever the orders: the bias is that of the same combination over
  prefixes, and only the variance depends on P. It falls with P to that of the U-statistic.

  Args:
    rewards: `[m]` rewards of a group.
    scores: `[m, d]` gradients of the log-probabilities.
    key: draws the orders; the same key for many prompts does not correlate their errors as long as
      the rollouts of a prompt are in no particular order.
    tail_fraction: alpha, in (0, 0.5].
    budget: N, at least `minimum_budget(tail_fraction)`.
    num_orders: P >= 1.
    orders: "reversed", every second order the reverse of the one before it; "independent", the form
      that the rule `subset_tea` trains on. The mean is the same, the variance is not.
    order: K, powers of 1/m cancelled in the bias; fewer than there are fractions.
    fractions: shares of the group that the subsets take, strictly increasing in (0, 1].
    objective: see `cancellation_weights`.
    scale_floor: smallest tail scale, in units of reward.

  Returns:
    `[d]`; bias O(m^-(order + 1)), variance O(1/m).

  Raises:
    ValueError: if m is too small for the subsets, or `num_orders` < 1.

  Example:
    >>> rewards = jax.random.normal(jax.random.key(0), (64,))
    >>> scores = jnp.stack([jnp.sin(rewards), jnp.cos(rewards)], axis=1)
    >>> setting = {"tail_fraction": 0.25, "budget": 128, "key": jax.random.key(1)}
    >>> subset_averaged_gradient(rewards, scores, **setting).shape
    (2,)
  """
  rewards, scores = _check_group(rewards, scores)
  subsets = cancelling_subsets(
    rewards.shape[0], tail_fraction, fractions=fractions, order=order, objective=objective
  )
  positions = draw_orders(key, rewards.shape, num_orders, orders=orders)
  # Sorted once, a subset's tail is its first members: no selection for each order.
  descending = jnp.argsort(rewards, descending=True)
  shaping = Shaping(tail_fraction, budget, scale_floor, positive_part=False)
  values = average_over_orders(rewards[descending], positions[:, descending], subsets, shaping)
  return values @ scores[descending] / rewards.shape[0]
