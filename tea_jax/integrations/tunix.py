"""Our rules inside Tunix's GRPO learners.

  from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
  import tea_jax
  from tea_jax.integrations import tunix

  tunix.register("tea", tea_jax.tea(tail_fraction=0.5, budget=128))
  config = GRPOConfig(advantage_estimator="tea", loss_agg_mode="seq-mean-token-sum", beta=0.0)
  learner = GRPOLearner(rl_cluster=cluster, reward_fns=reward, algo_config=config)

Tunix adds reward functions up with nansum: a NaN of one function counts as 0 there.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from tea_jax.advantages.rule import GroupRule
from tea_jax.integrations.groups import HostRule, contiguous_groups, warn_once

# Aggregations whose gradient is the sum over trajectories of advantage times score, up to scale.
_TRAJECTORY_LOSSES = (
  "seq-mean-token-sum",
  "sequence-mean-token-scale",
  "sequence-mean-token-sum-norm",
)


def register(
  name: str,
  rule: GroupRule | Callable[..., Any] | str,
  *,
  config: Any = None,
  seed: int = 0,
  shuffle: bool | None = None,
  step: Callable[[], int] | None = None,
) -> None:
  """Makes `rule` Tunix's advantage estimator `name`, for `GRPOConfig(advantage_estimator=name)`.

  A name stands for one rule: register one name a setting. Registering a name again replaces it.

  Args:
    name: in Tunix's registry.
    rule: an `AdvantageRule`, a plain function of rewards, or the name of a registered rule.
    config: the `GRPOConfig` that will be used, to be checked by `loss_remarks`. Without it the
      first call reminds of the loss, which Tunix does not show to its estimators.
    seed, shuffle: see `HostRule`. The agentic learner fills groups in the order in which
      trajectories finish.
    step: gives the trainer's step, on which random orders depend, e.g.
      `lambda: learner.rl_cluster.global_steps`; by default calls are counted, and a resumed run
      draws other orders.

  Raises:
    ImportError: if google-tunix is not installed.
    ValueError: if the rule needs more than rewards or, at the call, bigger groups.
  """
  from tunix.rl import function_registry

  host_rule = HostRule(rule, seed=seed, shuffle=shuffle)
  remarks = [_REMINDER] if config is None else loss_remarks(config)
  counter = itertools.count()

  def estimator(rewards: np.ndarray, num_generations: int, **_: Any) -> np.ndarray:
    """`[prompts * num_generations]` float32 advantages of the rewards of the same shape."""
    host_rule.rule.check_num_rollouts(num_generations)
    warn_once(remarks)
    call = next(counter)
    return host_rule(
      contiguous_groups(rewards, num_generations), step=(call if step is None else step(),)
    )

  function_registry.register_advantage_estimator(name)(estimator)


def loss_remarks(config: Any) -> list[str]:
  """What in a `GRPOConfig` makes the update no multiple of the trajectory policy gradient."""
  remarks = []
  if config.loss_agg_mode not in _TRAJECTORY_LOSSES:
    remarks.append(
      f"tea_jax in Tunix: loss_agg_mode={config.loss_agg_mode!r} weighs completions by their "
      "lengths, which changes what the advantage rule optimises; 'seq-mean-token-sum' does not."
    )
  if getattr(config, "loss_algo", "grpo") != "grpo":
    remarks.append(
      f"tea_jax in Tunix: loss_algo={config.loss_algo!r} takes the geometric mean of the ratios, "
      "which divides by the length; loss_algo='grpo' does not."
    )
  return remarks


_REMINDER = (
  "tea_jax in Tunix: GRPOConfig's default loss_agg_mode='sequence-mean-token-mean' weighs "
  "completions by their lengths, which changes what the advantage rule optimises; "
  "'seq-mean-token-sum' does not. register(..., config=config) checks instead of reminding."
)
