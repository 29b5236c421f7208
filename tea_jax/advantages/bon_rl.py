"""BoN-RL: the policy gradient of the distribution that best-of-n selection induces."""

from __future__ import annotations

import math
import numbers
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from tea_jax.advantages.parts import centre, positions_of
from tea_jax.advantages.registry import register_advantage
from tea_jax.advantages.rule import Group, GroupRule


@register_advantage("bon_rl")
def bon_rl(
  *,
  selection_size: int | None = None,
  coefficient: Literal["kl", "n-1"] | float = "kl",
  baseline: Literal["mean"] | float = "mean",
  shuffle: bool = True,
) -> GroupRule:
  """Chow's estimator: a random part of the group selects the best, the rest corrects for it.

  With S the selection and C the correction part, i* the first of the best in S, b the baseline:

    A_{i*} = m (r_{i*} - b)
    A_j = m (lambda / |C|) 1{r_j <= r_{i*}} (r_{i*} - b)   for j in C,   0 otherwise.

  Best-of-n is replaced by the tilted policy proportional to pi exp(lambda Q), Q(y) the probability
  that a draw is not better than y; the factor m undoes a trainer's mean over rollouts. Exact for
  the tilted policy only if b is the expected reward of the selected rollout, so with the group's
  mean the advantages do not sum to 0: that is the published rule.

  Args:
    selection_size: n, rollouts in S; None for half the group.
    coefficient: lambda: "kl" matches the tilted policy's KL divergence to that of best-of-n,
      "n-1" is the exponent of best-of-n itself; or a number.
    baseline: b: "mean" of the group, or a number.
    shuffle: split at random by the key; False puts the first rollouts in S.

  Raises:
    ValueError: for arguments out of range, or, at the call, a `selection_size` that leaves no
      rollout for C.

  Example:
    >>> rule = bon_rl(coefficient="n-1", shuffle=False)
    >>> print(rule(jnp.array([1.0, 4.0, 3.0, 4.0])))  # selected: 4, the better of the first two
    [0. 4. 2. 2.]

  Source: arXiv 2412.15287, Lemma 2; arXiv 2605.10716, eq. 25.
  """
  if selection_size is not None and selection_size < 1:
    raise ValueError(f"selection_size={selection_size} must be at least 1, or None for half")
  if coefficient not in ("kl", "n-1") and not isinstance(coefficient, numbers.Real):
    raise ValueError(f'coefficient={coefficient!r} must be "kl", "n-1" or a number')
  if baseline != "mean" and not isinstance(baseline, numbers.Real):
    raise ValueError(f'baseline={baseline!r} must be "mean" or a number')

  def compute(group: Group) -> Array:
    selected = group.count // 2 if selection_size is None else selection_size
    positions = positions_of(group.key if shuffle else None, group)
    in_selection = positions < selected
    in_correction = ~in_selection & (positions < group.count)
    candidates = jnp.where(in_selection, group.rewards, -jnp.inf)
    best = jnp.argmax(candidates, -1)
    is_best = jax.nn.one_hot(best, group.rewards.shape[-1], dtype=bool)
    best_reward = jnp.take_along_axis(group.rewards, best[..., None], -1)
    if baseline == "mean":
      gain = jnp.take_along_axis(centre(group.rewards, group), best[..., None], -1)
    else:
      gain = best_reward - baseline / group.scale
    strength = _coefficient(coefficient, selected, group) / jnp.maximum(group.count - selected, 1)
    correction = jnp.where(in_correction & (group.rewards <= best_reward), strength * gain, 0)
    return group.count * jnp.where(is_best, gain, correction)

  def check(num_rollouts: int) -> None:
    if selection_size is not None and selection_size >= num_rollouts:
      raise ValueError(
        f"bon_rl: selection_size={selection_size} leaves no rollout of num_rollouts="
        f"{num_rollouts} for the correction; use selection_size <= {num_rollouts - 1}"
      )

  return GroupRule(
    "bon_rl",
    compute,
    {
      "selection_size": selection_size,
      "coefficient": coefficient,
      "baseline": baseline,
      "shuffle": shuffle,
    },
    needs=("key",) if shuffle else (),
    minimum_rollouts=2 if selection_size is None else selection_size + 1,
    scale_degree=1,
    check=check,
  )


def tilt_coefficient(selection_size: int) -> float:
  """lambda_n: the tilted policy pi exp(lambda Q) is as far from pi as best-of-n is.

  Root of ((lambda - 1) e^lambda + 1) / (e^lambda - 1) - log((e^lambda - 1) / lambda)
  = log n - (n - 1) / n, both sides Kullback-Leibler divergences under continuous rewards; about
  n + 1. By bisection in float64; 0 for n = 1.

  Source: arXiv 2412.15287, Lemma 2.
  """
  if selection_size < 1:
    raise ValueError(f"selection_size={selection_size} must be at least 1")
  if selection_size == 1:
    return 0.0
  target = math.log(selection_size) - (selection_size - 1) / selection_size

  def divergence(tilt: float) -> float:
    # Divided through by e^tilt, which overflows.
    decay = math.exp(-tilt)
    mean = (tilt - 1 + decay) / (1 - decay)
    return mean - (tilt + math.log1p(-decay) - math.log(tilt))

  lower, upper = 1.0, selection_size + 8.0
  for _ in range(200):
    middle = 0.5 * (lower + upper)
    lower, upper = (middle, upper) if divergence(middle) < target else (lower, middle)
  return 0.5 * (lower + upper)


def _coefficient(coefficient, selected, group: Group):
  """lambda for the size of S: a number, or `[..., 1]` where groups differ in size."""
  if isinstance(coefficient, numbers.Real):
    return float(coefficient)
  if coefficient == "n-1":
    return selected - 1
  if isinstance(selected, int):
    return tilt_coefficient(max(selected, 1))
  table = [tilt_coefficient(max(n, 1)) for n in range(group.rewards.shape[-1] + 1)]
  return jnp.asarray(np.array(table), group.rewards.dtype)[selected]
