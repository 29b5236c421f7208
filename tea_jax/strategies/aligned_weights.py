"""Weights of compute-aligned training: how a test-time strategy values a sample's probability.

p is the probability that one sample succeeds, N the number of samples at deployment, S(p) the
probability that the strategy succeeds. The reinforcement-learning weight is S'(p); the log-weighted
one, p S'(p) / S(p), is that of log S. Everything is in logarithms, from both log p and log(1 - p),
so that p may be as close to 0 or to 1 as the logarithms can say.

Source: arXiv 2604.24957, Table 1, eqs. 58, 75, 81, 97, 106.
"""

from __future__ import annotations

import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from scipy.special import gammaln

WeightNormalization = Literal["none", "group", "batch"]


def log_complement(log_probability: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
  """log(1 - p) from log p <= 0, without cancellation at either end."""
  log_probability = jnp.minimum(log_probability, 0)
  near_one = log_probability > -math.log(2)
  # Each branch sees only arguments at which it is finite.
  small = jnp.log(-jnp.expm1(jnp.where(near_one, log_probability, -1.0)))
  large = jnp.log1p(-jnp.exp(jnp.where(near_one, -1.0, log_probability)))
  return jnp.where(near_one, small, large)


def log_pass_weight(
  log_probability: Float[Array, "*batch"],
  *,
  budget: int,
  log_weighted: bool = False,
  log_failure: Float[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
  """Logarithm of the Pass@N weight, S = 1 - (1 - p)^N.

  raw: N (1 - p)^(N - 1), from N at p = 0 to 0 at p = 1; log-weighted: N p (1 - p)^(N - 1) / S,
  from 1 to 0.

  Args:
    log_probability: log p, at most 0, -inf allowed.
    budget: N.
    log_weighted: the weight of log S instead of S.
    log_failure: log(1 - p) if it is known better than from log p.

  Returns:
    The same shape; -inf where the weight is 0.
  """
  if log_failure is None:
    log_failure = log_complement(log_probability)
  raw = math.log(budget) + _times(budget - 1, log_failure)
  if not log_weighted:
    return raw
  dtype = jnp.result_type(log_probability)
  # Below this, S = N p to the last digit, and the logarithm of its tiny complement is not needed.
  tiny = log_probability < math.log(float(jnp.finfo(dtype).eps) / budget)
  log_success = log_complement(budget * jnp.where(tiny, -1.0, log_failure))
  return raw + jnp.where(tiny, -math.log(budget), log_probability - log_success)


def log_majority_weight(
  log_probability: Float[Array, "*batch"],
  threshold: Int[Array, "*batch"] | int,
  *,
  budget: int,
  log_weighted: bool = False,
  log_failure: Float[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
  """Logarithm of the majority weight, S the probability of k or more of N votes.

  raw: N C(N-1, k-1) p^(k-1) (1-p)^(N-k); log-weighted: k C(N, k) p^k (1-p)^(N-k) / S, from k at
  p = 0 to 0 at p = 1 (N everywhere for k = N). k = 1 is Pass@N.

  Args:
    log_probability: log p, at most 0, -inf allowed.
    threshold: k, votes that win; clipped to [1, N].
    budget: N, the number of votes.
    log_weighted: the weight of log S instead of S; costs N terms a value.
    log_failure: log(1 - p) if it is known better than from log p.

  Returns:
    The broadcast shape; -inf where the weight is 0.
  """
  dtype = jnp.result_type(log_probability)
  if log_failure is None:
    log_failure = log_complement(log_probability)
  k = jnp.clip(jnp.asarray(threshold, jnp.int32), 1, budget)
  votes = np.arange(budget + 1)
  log_choose = gammaln(budget + 1) - gammaln(votes + 1) - gammaln(budget - votes + 1)
  if not log_weighted:
    # k C(N, k) = N C(N-1, k-1)
    choose = jnp.asarray(log_choose + np.log(np.maximum(votes, 1)), dtype)[k]
    return choose + _times(k - 1, log_probability) + _times(budget - k, log_failure)
  # p^k (1-p)^(N-k) is taken out of S: what remains is sums of powers of the odds, and for p -> 0
  # no large logarithms cancel.
  log_odds = (log_probability - log_failure)[..., None]
  beyond = votes - k[..., None]
  terms = (
    jnp.asarray(log_choose, dtype)
    - jnp.asarray(log_choose, dtype)[k][..., None]
    + _times(jnp.maximum(beyond, 0), log_odds)
  )
  log_success = jax.nn.logsumexp(jnp.where(beyond >= 0, terms, -jnp.inf), axis=-1)
  return jnp.log(k.astype(dtype)) - log_success


def log_best_of_n_weight(
  log_quantile: Float[Array, "*batch"], *, budget: int
) -> Float[Array, "*batch"]:
  """log(N q^(N-1)), q the share of rewards strictly below: -inf for the lowest unless N = 1."""
  return math.log(budget) + _times(budget - 1, log_quantile)


def majority_threshold(
  rewards: Float[Array, "*batch num_rollouts"],
  answers: Int[Array, "*batch num_rollouts"],
  *,
  budget: int,
  success_threshold: Float[Array, "..."] | float = 0.5,
  where: Array | None = None,
) -> Int[Array, "*batch"]:
  """Votes of `budget` that beat the strongest wrong answer, at its frequency in the group.

  k = clip(floor(N c_max / m) + 1, 2, floor(N / 2) + 1), c_max the count of the most frequent wrong
  answer; all unparsable answers (negative ids) are one wrong answer.

  Args:
    rewards: `[..., num_rollouts]`; above `success_threshold` is a correct answer.
    answers: `[..., num_rollouts]` integer ids.
    budget: N.
    success_threshold: see `rewards`.
    where: `[..., num_rollouts]`, the rollouts that count.

  Source: arXiv 2604.24957, section B.7.2 and appendix K.
  """
  wrong = rewards <= success_threshold
  if where is not None:
    wrong &= where
  answers = jnp.maximum(answers, -1)
  # One rollout after the other: all pairs at once would be m times the memory of the rewards.
  strongest = jnp.max(
    jax.lax.fori_loop(
      0,
      rewards.shape[-1],
      lambda i, copies: copies + _equal_to(i, answers, wrong),
      jnp.zeros(rewards.shape, jnp.int32),
    ),
    -1,
  )
  if where is None:
    count = rewards.shape[-1]
  else:
    count = jnp.maximum(jnp.sum(where, -1, dtype=jnp.int32), 1)
  most = budget // 2 + 1
  return jnp.clip(budget * strongest // count + 1, min(2, most), most)


def aligned_weights(
  log_weights: Float[Array, "*batch num_rollouts_or_1"],
  shape: tuple[int, ...],
  *,
  where: Array | None = None,
  clip: float | None = None,
  normalization: WeightNormalization = "none",
) -> Float[Array, "*batch num_rollouts"]:
  """Weights from their logarithms: clipped first, then divided by their mean.

  Args:
    log_weights: `[..., num_rollouts]`, or `[..., 1]` for one weight a prompt.
    shape: of the rewards.
    where: `[..., num_rollouts]`, the rollouts that count in the mean.
    clip: largest weight, None for no bound.
    normalization: "none"; "group" divides by the mean over the group, which cancels a weight of the
      prompt; "batch" by the mean over every rollout of every group in the call, which keeps their
      ratios. A batch of one prompt with one weight keeps it as it is.

  Returns:
    `shape`, not negative; weights that are all 0 stay 0.

  Source: arXiv 2604.24957, eqs. 81, 106.
  """
  if clip is not None:
    log_weights = jnp.minimum(log_weights, math.log(clip))
  per_prompt = log_weights.shape[-1] == 1 and shape[-1] > 1
  alone = per_prompt and math.prod(shape[:-1]) == 1
  if normalization == "none" or (normalization == "batch" and alone):
    return jnp.broadcast_to(jnp.exp(log_weights), shape)
  log_weights = jnp.broadcast_to(log_weights, shape)
  counts = jnp.ones(shape, bool) if where is None else where
  log_weights = jnp.where(counts, log_weights, -jnp.inf)
  axes = -1 if normalization == "group" else tuple(range(len(shape)))
  # The largest is divided out first: N q^(N-1) underflows for every q far enough below 1.
  largest = jnp.max(log_weights, axes, keepdims=True)
  weights = jnp.exp(log_weights - jnp.where(jnp.isneginf(largest), 0, largest))
  total = jnp.sum(weights, axes, keepdims=True)
  number = jnp.sum(counts, axes, keepdims=True)
  return weights * number / jnp.where(total > 0, total, 1)


def _equal_to(index: Array, answers: Array, wrong: Array) -> Array:
  """1 where a wrong rollout has the answer of rollout `index`, if that is wrong too."""
  answer = jax.lax.dynamic_index_in_dim(answers, index, -1)
  counts = jax.lax.dynamic_index_in_dim(wrong, index, -1)
  return ((answers == answer) & wrong & counts).astype(jnp.int32)


def _times(factor, logarithm: Array) -> Array:
  """factor * logarithm, where 0 * -inf is 0."""
  factor = jnp.asarray(factor)
  return jnp.where(factor == 0, 0, jnp.where(factor == 0, 1, factor) * logarithm)
