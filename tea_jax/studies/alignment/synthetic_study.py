"""Table 13 on pools whose shape is known, without a policy."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import jax

from tea_jax.advantages import GroupRule
from tea_jax.runtime.keys import make_key
from tea_jax.studies.alignment.estimators import Alignment, make_alignment
from tea_jax.studies.alignment.synthetic_pools import synthetic_pools


def synthetic_study(
  rules: Mapping[str, GroupRule],
  *,
  pools: Sequence[str],
  num_rollouts: Sequence[int],
  num_seeds: int,
  budget: int,
  seed: int = 0,
  **shape: float,
) -> dict[str, dict[int, dict[str, Alignment]]]:
  """Alignment of every rule by shape of the rewards and group size.

  Args:
    rules: need rewards (and a key) only.
    pools: names of `synthetic_pools.POOL_SHAPES`.
    num_rollouts, budget: see `make_alignment`.
    num_seeds: independent pools, and draws of groups from each.
    seed: of all random numbers.
    **shape: num_prompts, pool_size, location_spread and scale_spread of `synthetic_pools`.

  Raises:
    ValueError: for an unknown shape, or a group larger than the pool.
  """
  pool_key, group_key = jax.random.split(make_key(seed))
  keys = jax.random.split(pool_key, num_seeds)
  drawn = {}
  for name in pools:
    draw = jax.jit(jax.vmap(functools.partial(synthetic_pools, shape=name, **shape)))
    drawn[name] = draw(keys)
  study: dict[str, dict[int, dict[str, Alignment]]] = {name: {} for name in pools}
  for size in num_rollouts:
    evaluate = make_alignment(rules, num_rollouts=size, budget=budget)
    for name in pools:
      study[name][size] = evaluate(group_key, drawn[name])
  return study
