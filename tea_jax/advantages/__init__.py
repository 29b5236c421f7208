"""Advantage rules: rewards of groups of rollouts in, advantages out.

A new rule is a file beside these, with its two lines here.
"""

from tea_jax.advantages.bon_rl import bon_rl
from tea_jax.advantages.compute_aligned import cat_best_of_n, cat_majority, cat_pass_at_n
from tea_jax.advantages.diagnostics import advantage_diagnostics
from tea_jax.advantages.group_relative import bon_max_mean, bon_max_second, grpo, rloo
from tea_jax.advantages.influence import best_of_n_oracle, blended_influence, tail_influence
from tea_jax.advantages.max_at_k import max_at_k
from tea_jax.advantages.prefix_tea import prefix_tea, subset_tea
from tea_jax.advantages.registry import (
  AdvantageSpec,
  available_advantages,
  make_advantage,
  register_advantage,
)
from tea_jax.advantages.rescale import rescaled
from tea_jax.advantages.rule import AdvantageRule, GroupRule
from tea_jax.advantages.tea import tea
from tea_jax.advantages.tied_tea import tied_tea

__all__ = [
  "AdvantageRule",
  "AdvantageSpec",
  "GroupRule",
  "advantage_diagnostics",
  "available_advantages",
  "best_of_n_oracle",
  "blended_influence",
  "bon_max_mean",
  "bon_max_second",
  "bon_rl",
  "cat_best_of_n",
  "cat_majority",
  "cat_pass_at_n",
  "grpo",
  "make_advantage",
  "max_at_k",
  "prefix_tea",
  "register_advantage",
  "rescaled",
  "rloo",
  "subset_tea",
  "tail_influence",
  "tea",
  "tied_tea",
]
