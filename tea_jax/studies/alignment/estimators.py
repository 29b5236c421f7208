"""Oracle alignment: how well a rule's gradient from m rollouts points along the best-of-N gradient.

Of each prompt a large pool of scored rollouts stands for the policy. The oracle advantage of a
rollout is its exact influence on E[max of N] of the pool. A group of m is drawn from each pool
without replacement, and for that group

  g_rule = (1/m) sum_prompts sum_i A_i s_i,     g_oracle = (1/m) sum_prompts sum_i O_i s_i,

s_i the score (gradient of the log-probability) of rollout i, A the rule's advantages from the m
rewards, O the oracle's. The alignment is the cosine of the two sums: one number for each seed,
averaged over seeds. (Cosines of single prompts would hide how a rule weighs prompts.)

Everything about gradients is a choice of the inner product of advantage vectors:

- orthonormal scores: the plain inner product over the group and prompts, no gradient needed;
- explicit scores, or the two summed gradients themselves, as pytrees (`gradient_cosine`), which is
  what a real policy's last block is small enough for.

Source: arXiv 2605.10716, section 4.6 and Table 13.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from tea_jax.advantages import GroupRule, best_of_n_oracle

PUBLISHED_BUDGET = 128
# Compared by default.
RULES = (
  "grpo",
  "grpo:normalize=true",
  "rloo",
  "bon_max_mean",
  "bon_max_second",
  "max_at_k",
  "max_at_k:leave_one_out=true,normalize=false",
  "bon_rl",
  "cat_best_of_n",
  "best_of_n_oracle",
  "tea",
  "tea:tail_fraction=0.125",
  "prefix_tea",
  "subset_tea",
  "tail_influence",
  "tail_influence:tail_fraction=0.125",
  "tail_influence:tail_fraction=0.5",
  "blended_influence",
)
PUBLISHED_SIZES = (8, 16, 32, 64, 128, 256)
PUBLISHED_ALIGNMENT: Mapping[str, tuple[float, ...]] = {
  "grpo": (0.145, 0.182, 0.176, 0.168, 0.176, 0.202),
  "tea": (0.502, 0.668, 0.698, 0.709, 0.761, 0.802),
  "bon_max_mean": (0.287, 0.479, 0.518, 0.537, 0.537, 0.687),
  "bon_max_second": (0.437, 0.606, 0.599, 0.667, 0.600, 0.701),
  "max_at_k": (0.338, 0.384, 0.437, 0.473, 0.493, 0.647),
  "bon_rl": (0.127, -0.003, 0.121, 0.117, 0.143, 0.041),
  "cat_best_of_n": (0.298, 0.470, 0.482, 0.544, 0.519, 0.692),
}
"""Table 13 by our names (its "BoN mean" is max_at_k, "Chow" bon_rl), on a real policy. The group
sizes of its columns are not in the text; `PUBLISHED_SIZES` is what fits."""


class Alignment(NamedTuple):
  """Cosines of one rule at one group size.

  Attributes:
    mean: over the seeds at which the cosine is defined; NaN if there is none.
    standard_error: of the mean; NaN for fewer than two.
    cosines: `[num_seeds]`, NaN where a gradient was 0.
  """

  mean: float
  standard_error: float
  cosines: Float[np.ndarray, " num_seeds"]


def summarize_cosines(cosines: Sequence[float] | Float[np.ndarray, " num_seeds"]) -> Alignment:
  """Mean and standard error over seeds, without those whose cosine is undefined."""
  cosines = np.asarray(cosines, np.float64)
  defined = cosines[~np.isnan(cosines)]
  mean = float(defined.mean()) if defined.size else float("nan")
  error = float(defined.std(ddof=1) / defined.size**0.5) if defined.size > 1 else float("nan")
  return Alignment(mean, error, cosines)


def oracle_advantages(
  pools: Float[Array, "*batch pool_size"], *, budget: int = PUBLISHED_BUDGET
) -> Float[Array, "*batch pool_size"]:
  """Exact influence of each reward of a pool on E[max of `budget` draws from that pool].

  Args:
    pools: `[..., pool_size]` rewards.
    budget: N.

  Returns:
    The same shape; mean 0 over each pool. Take a group's entries, do not compute it on the group.
  """
  return best_of_n_oracle(budget=budget)(pools)


def draw_groups(
  key: Array, batch: tuple[int, ...], pool_size: int, num_rollouts: int
) -> Int[Array, "*batch num_rollouts"]:
  """Indices of one group for each pool, drawn without replacement.

  Groups of the same key are nested: that of m is the first m of any larger one.

  Args:
    key: random key.
    batch: leading shape, e.g. `(num_prompts,)`.
    pool_size: rollouts in each pool.
    num_rollouts: m, at most `pool_size`.
  """
  if num_rollouts > pool_size:
    raise ValueError(
      f"num_rollouts={num_rollouts} exceeds the pool of {pool_size}: groups are drawn without "
      "replacement"
    )
  order = jnp.argsort(jax.random.uniform(key, (*batch, pool_size)), -1)
  return order[..., :num_rollouts]


def alignment_cosine(
  advantages: Float[Array, "prompts num_rollouts"],
  oracle: Float[Array, "prompts num_rollouts"],
) -> Float[Array, ""]:
  """Cosine of sum A_i s_i and sum O_i s_i for orthonormal scores s_i.

  Args:
    advantages: `[prompts, num_rollouts]` of the rule.
    oracle: the same of the oracle, at the same rollouts.

  Returns:
    The cosine; NaN if either sum is 0. The factor 1/m cancels.
  """
  chex.assert_rank(advantages, 2)
  chex.assert_equal_shape([advantages, oracle])
  dtype = jnp.promote_types(advantages.dtype, jnp.float32)
  # A cosine does not depend on the lengths; near 1 no product over- or underflows.
  left, right = (_unit_magnitude(jnp.asarray(x, dtype)) for x in (advantages, oracle))
  return _cosine(jnp.sum(left * right), jnp.sum(left**2), jnp.sum(right**2))


def gradient_cosine(gradient: Any, oracle_gradient: Any) -> Float[Array, ""]:
  """Cosine of two gradients, pytrees of arrays of the same shapes; NaN if either is 0.

  For a real policy: both gradients of `(1/m) sum A_i log pi(y_i)`, summed over prompts, with
  respect to the same parameters.
  """
  chex.assert_trees_all_equal_shapes(gradient, oracle_gradient)

  def product(left: Any, right: Any) -> Array:
    leaves = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return sum(
      (jnp.sum(x.astype(jnp.float32) * y.astype(jnp.float32)) for x, y in leaves), jnp.zeros(())
    )

  return _cosine(
    product(gradient, oracle_gradient),
    product(gradient, gradient),
    product(oracle_gradient, oracle_gradient),
  )


def _unit_magnitude(values: Array) -> Array:
  largest = jnp.max(jnp.abs(values))
  return values / jnp.where(largest > 0, largest, 1)


def _cosine(product: Array, left: Array, right: Array) -> Array:
  defined = (left > 0) & (right > 0)
  # Two square roots: the product of two squared lengths may leave the range of float32.
  length = jnp.sqrt(jnp.where(defined, left, 1)) * jnp.sqrt(jnp.where(defined, right, 1))
  return jnp.where(defined, product / length, jnp.nan)


def group_advantages(
  rule: GroupRule,
  pools: Float[Array, "prompts pool_size"],
  indices: Int[Array, "prompts num_rollouts"],
  *,
  key: Array | None = None,
) -> Float[Array, "prompts num_rollouts"]:
  """Advantages of a rule for the groups at `indices` of the pools.

  Args:
    rule: whose advantages follow from rewards (and a key) alone.
    pools: `[prompts, pool_size]` rewards.
    indices: `[prompts, num_rollouts]`, from `draw_groups`.
    key: for rules that order or split the group at random.
  """
  return rule(jnp.take_along_axis(jnp.asarray(pools), indices, -1), key=key)


def needs_more_than_rewards(rule: GroupRule) -> tuple[str, ...]:
  """Named inputs of a rule that a pool of rewards cannot supply."""
  return tuple(name for name in rule.needs if name != "key")


def make_alignment(
  rules: Mapping[str, GroupRule], *, num_rollouts: int, budget: int = PUBLISHED_BUDGET
) -> Callable[[Array, Float[Array, "seeds prompts pool_size"]], dict[str, Alignment]]:
  """A compiled `(key, pools) -> {rule: Alignment}` for orthonormal scores.

  All rules see the same groups, and with one key groups of different m are nested, so differences
  between rules and between sizes are paired. One program for all rules, vectorised over seeds.

  Args:
    rules: name -> rule; each must need rewards (and a key) only. Rules that refuse groups of this
      size are left out of the result.
    num_rollouts: m.
    budget: N of the oracle.

  Raises:
    ValueError: for a rule that needs more than rewards.
  """
  usable = {name: rule for name, rule in rules.items() if accepts_groups(name, rule, num_rollouts)}

  def one_seed(key: Array, pools: Array) -> dict[str, Array]:
    group_key, rule_key = jax.random.split(key)
    indices = draw_groups(group_key, pools.shape[:-1], pools.shape[-1], num_rollouts)
    oracle = jnp.take_along_axis(oracle_advantages(pools, budget=budget), indices, -1)
    return {
      name: alignment_cosine(group_advantages(rule, pools, indices, key=rule_key), oracle)
      for name, rule in usable.items()
    }

  @jax.jit
  def all_seeds(key: Array, pools: Array) -> dict[str, Array]:
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(pools.shape[0]))
    # A few seeds at a time: more would only grow the memory.
    return jax.lax.map(lambda seed: one_seed(*seed), (keys, pools), batch_size=8)

  def evaluate(key: Array, pools: Float[Array, "seeds prompts pool_size"]) -> dict[str, Alignment]:
    chex.assert_rank(pools, 3)
    cosines = all_seeds(key, pools)
    return {name: summarize_cosines(np.asarray(cosines[name])) for name in usable}

  return evaluate


def accepts_groups(name: str, rule: GroupRule, num_rollouts: int) -> bool:
  """Whether a rule can take groups of this size.

  Raises:
    ValueError: for a rule that needs more than rewards.
  """
  if missing := needs_more_than_rewards(rule):
    raise ValueError(f"rule {name!r} needs {', '.join(missing)}, which pools of rewards lack")
  try:
    rule.check_num_rollouts(num_rollouts)
  except ValueError:
    return False
  return True
