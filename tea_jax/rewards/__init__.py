"""Rewards: texts in, checked scores out; `base` has the contract, `registry` the names."""

from tea_jax.rewards.base import (
  RewardContext,
  RewardError,
  RewardFunction,
  WeightedReward,
  call_reward,
  reward_name,
  row_wise,
)
from tea_jax.rewards.registry import available_rewards, make_reward, register_reward
from tea_jax.runtime.user_code import load_object

__all__ = [
  "RewardContext",
  "RewardError",
  "RewardFunction",
  "WeightedReward",
  "available_rewards",
  "call_reward",
  "load_object",
  "make_reward",
  "register_reward",
  "reward_name",
  "row_wise",
]
