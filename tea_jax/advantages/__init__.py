"""Advantage rules: rewards of groups of rollouts in, advantages out."""

from tea_jax.advantages.bon_rl import bon_rl
from tea_jax.advantages.compute_aligned import cat_best_of_n, cat_majority, cat_pass_at_n
from tea_jax.advantages.configs import (
  AdvantageConfig,
  BestOfNOracleConfig,
  BlendedInfluenceConfig,
  BonMaxMeanConfig,
  BonMaxSecondConfig,
  BonRlConfig,
  CatBestOfNConfig,
  CatMajorityConfig,
  CatPassAtNConfig,
  GrpoConfig,
  MaxAtKConfig,
  PrefixTeaConfig,
  RlooConfig,
  SubsetTeaConfig,
  TailInfluenceConfig,
  TeaConfig,
)
from tea_jax.advantages.diagnostics import advantage_diagnostics
from tea_jax.advantages.flags import AdvantageFlags
from tea_jax.advantages.group_relative import bon_max_mean, bon_max_second, grpo, rloo
from tea_jax.advantages.influence import blended_influence
from tea_jax.advantages.max_at_k import max_at_k
from tea_jax.advantages.oracle import best_of_n_oracle
from tea_jax.advantages.prefix_tea import prefix_tea, subset_tea
from tea_jax.advantages.registry import available_advantages, make_advantage, register_advantage
from tea_jax.advantages.rule import AdvantageRule, GroupRule
from tea_jax.advantages.tea import tail_influence, tea
from tea_jax.advantages.tracking import (
  MovingThreshold,
  RewardBuffer,
  Tracker,
  append_rewards,
  moving_threshold,
  reward_buffer,
  reward_quantiles,
  update_threshold,
)

__all__ = [
  "AdvantageConfig",
  "AdvantageFlags",
  "AdvantageRule",
  "BestOfNOracleConfig",
  "BlendedInfluenceConfig",
  "BonMaxMeanConfig",
  "BonMaxSecondConfig",
  "BonRlConfig",
  "CatBestOfNConfig",
  "CatMajorityConfig",
  "CatPassAtNConfig",
  "GroupRule",
  "GrpoConfig",
  "MaxAtKConfig",
  "MovingThreshold",
  "PrefixTeaConfig",
  "RewardBuffer",
  "RlooConfig",
  "SubsetTeaConfig",
  "TailInfluenceConfig",
  "TeaConfig",
  "Tracker",
  "advantage_diagnostics",
  "append_rewards",
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
  "moving_threshold",
  "prefix_tea",
  "register_advantage",
  "reward_buffer",
  "reward_quantiles",
  "rloo",
  "subset_tea",
  "tail_influence",
  "tea",
  "update_threshold",
]
