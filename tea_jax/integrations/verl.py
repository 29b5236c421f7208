"""Our rules inside verl, and in SkyRL, whose estimators are called in the same way.

After `pip install tea-jax` verl finds this module by its entry point:

  python -m verl.trainer.main_ppo algorithm.adv_estimator=tea +algorithm.tea.budget=128 \\
    actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum-norm ...

`python -m tea_jax.integrations.verl` prints what is registered: every rule of `RULES` under its
name, with its arguments, and `seed`, under `algorithm.<name>`; and `tea_jax`, for any rule that
tea_jax knows: `algorithm.adv_estimator=tea_jax +algorithm.tea_jax.rule=rloo`. JAX is imported only
when an estimator is called, since verl imports this module in each of its workers.

A session of several turns has a row for each of its outputs, and verl shows all of them to every
estimator but its own GRPO: each then counts as a rollout.

SkyRL's config has no place for a rule's arguments; they are given where the rule is registered
(tried with SkyRL 0.4.0, not covered by a test):

  from skyrl.backends.skyrl_train.utils.ppo_utils import register_advantage_estimator
  register_advantage_estimator("tea")(RuleEstimator("tea", budget=128))
"""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Iterator
from typing import Any

# Rules of rewards alone, under names that verl has not taken.
RULES = (
  "tea",
  "prefix_tea",
  "subset_tea",
  "tail_influence",
  "blended_influence",
  "max_at_k",
  "bon_rl",
  "bon_max_mean",
  "bon_max_second",
  "cat_best_of_n",
)
# The estimator whose config names its rule: algorithm.tea_jax.rule=grpo, or one of the user's own.
ANY_RULE = "tea_jax"


_REMINDER = (
  "tea_jax in verl: the default actor.loss_agg_mode=token-mean weighs completions by their "
  "lengths, which changes what the advantage rule optimises; "
  "actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum-norm does not."
)


class RuleEstimator:
  """A registered rule as verl's advantage estimator: groups by uid, in any order of rows.

  Args:
    name: of the rule, and of its arguments' group in the algorithm config.
    **arguments: of the rule, `seed`, and `rule` where that has another name; the config's come
      before these.
  """

  def __init__(self, name: str, **arguments: Any):
    self.name, self.arguments = name, arguments
    self.__name__ = f"tea_jax.{name}"
    # A rule is made at the first call, when its arguments are known; calls are counted for each.
    self._made: dict[str, tuple[Any, Iterator[int]]] = {}

  def __repr__(self) -> str:
    return f"tea_jax's advantage rule {self.name!r}"

  def __call__(
    self, token_level_rewards: Any, response_mask: Any, index: Any = None, config: Any = None, **_
  ) -> tuple[Any, Any]:
    """`(advantages, returns)`, both `[rows, time]`: a row's advantage on each of its tokens.

    Args:
      token_level_rewards: `[rows, time]` tensor; a rollout's reward is their sum.
      response_mask: `[rows, time]` tensor.
      index: `[rows]` ids of the prompts; groups may differ in size.
      config: the `algorithm` config, whose group of the rule's name holds its arguments.

    Raises:
      ValueError: without `index`, for an unknown argument, for a reward that is not finite.
    """
    from tea_jax.integrations.groups import groups_by_id, warn_once

    if index is None:
      raise ValueError(
        f"adv_estimator={self.name} compares the rollouts of a prompt, and the batch has no uid"
      )
    rule, calls = self._rule({**self.arguments, **_config_group(config, self.name)})
    warn_once([_REMINDER])
    rewards = token_level_rewards.sum(-1).double().detach().cpu().numpy()
    values = rule(groups_by_id(rewards, index), step=(next(calls),))
    advantages = token_level_rewards.new_tensor(values)[:, None] * response_mask
    return advantages, advantages

  def _rule(self, arguments: dict[str, Any]) -> tuple[Any, Iterator[int]]:
    from tea_jax.advantages import make_advantage
    from tea_jax.integrations.groups import HostRule, pin_jax_to_cpu

    setting = repr(sorted(arguments.items()))
    if setting not in self._made:
      pin_jax_to_cpu()
      seed = arguments.pop("seed", 0)
      name = arguments.pop("rule", self.name)
      rule = HostRule(make_advantage(name, **arguments), seed=seed)
      self._made[setting] = rule, itertools.count()
    return self._made[setting]


def register() -> None:
  """Registers every rule of `RULES` in verl."""
  from verl.trainer.ppo.core_algos import register_adv_est

  for name in (*RULES, ANY_RULE):
    register_adv_est(name)(RuleEstimator(name))


def main() -> None:
  """Prints which of verl's estimators are ours."""
  from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY

  for name, function in ADV_ESTIMATOR_REGISTRY.items():
    if type(function).__name__ == RuleEstimator.__name__:
      print(f"algorithm.adv_estimator={name}: {function!r}")


def _config_group(config: Any, name: str) -> dict[str, Any]:
  """The group `name` of a config of omegaconf, of a dataclass or a mapping; empty without one."""
  if config is None:
    return {}
  group = config.get(name, None) if hasattr(config, "get") else getattr(config, name, None)
  return {key: _plain(value) for key, value in dict(group or {}).items()}


def _plain(value: Any) -> Any:
  """A tuple in the place of a config's own kind of list."""
  return tuple(value) if hasattr(value, "__iter__") and not isinstance(value, str) else value


if __name__ == "__main__":
  main()
elif importlib.util.find_spec("verl") is not None:
  register()
