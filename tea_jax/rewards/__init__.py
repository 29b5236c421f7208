"""Rewards: texts in, scores out, every call checked; see `base` for the contract."""

from tea_jax.rewards.base import (
  RewardContext,
  RewardError,
  RewardFunction,
  WeightedReward,
  available_rewards,
  call_reward,
  load_object,
  make_reward,
  register_reward,
  reward_name,
)

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
]
