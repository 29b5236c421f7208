"""Our rules inside TRL's GRPO trainer.

  from trl import GRPOConfig, GRPOTrainer
  import tea_jax
  from tea_jax.integrations.trl import with_rule

  trainer = with_rule(GRPOTrainer, tea_jax.tea(tail_fraction=0.5, budget=128))(
    model="Qwen/Qwen3-0.6B", reward_funcs=reward, train_dataset=dataset,
    args=GRPOConfig(num_generations=16, loss_type="dr_grpo"),
  )
  trainer.train()

Everything else is TRL's: PEFT, vLLM, several processes, evaluation, logging.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from tea_jax.advantages.rule import GroupRule
from tea_jax.integrations.groups import HostRule, contiguous_groups, pin_jax_to_cpu, warn_once

Trainer = TypeVar("Trainer", bound=type)

# Losses whose gradient is the sum over trajectories of advantage times score, up to a constant.
_TRAJECTORY_LOSSES = ("dr_grpo", "luspo")


def with_rule(
  trainer_class: Trainer,
  rule: GroupRule | Callable[..., Any] | str,
  *,
  seed: int = 0,
  shuffle: bool | None = None,
) -> Trainer:
  """A trainer class that trains, and logs, the advantages of `rule` in place of its own.

  The rule sees each group's total rewards: the weighted sum of the reward functions over all
  processes, as TRL makes it (`reward_weights`, `multi_objective_aggregation`). Completions for
  which every function returned None do not count. `scale_rewards` has no effect.

  Args:
    trainer_class: `trl.GRPOTrainer` or a subclass.
    rule: an `AdvantageRule`, a plain function of rewards, or the name of a registered rule.
    seed, shuffle: see `HostRule`; orders follow the trainer's step, so a resumed run repeats them.

  Raises:
    TypeError: if the class is no GRPO trainer of TRL.
    ValueError: if the rule needs more than rewards or, when the trainer is made, bigger groups.
  """
  for method in ("_calculate_rewards", "_generate_and_score_completions"):
    if not hasattr(trainer_class, method):
      raise TypeError(
        f"{trainer_class.__name__} has no method {method}: with_rule takes trl.GRPOTrainer (1.16) "
        "or a subclass of it"
      )
  pin_jax_to_cpu()
  host_rule = HostRule(rule, seed=seed, shuffle=shuffle)

  class RuleTrainer(trainer_class):
    advantage_rule = host_rule.rule

    def __init__(self, *args, **kwargs):
      super().__init__(*args, **kwargs)
      host_rule.rule.check_num_rollouts(self.num_generations)
      warn_once(loss_remarks(self.args))

    def _calculate_rewards(self, *args, **kwargs):
      self._gathered_rewards = super()._calculate_rewards(*args, **kwargs)
      return self._gathered_rewards

    def _generate_and_score_completions(self, *args, **kwargs):
      output = super()._generate_and_score_completions(*args, **kwargs)
      training = self.model.training
      advantages = host_rule(
        contiguous_groups(
          total_rewards(
            self._gathered_rewards.float().cpu().numpy(),
            self.reward_weights.float().cpu().numpy(),
            num_generations=self.num_generations if training else self.num_generations_eval,
            aggregation=self.multi_objective_aggregation,
          ),
          self.num_generations if training else self.num_generations_eval,
          unscored=True,
        ),
        # A step of the optimiser may hold several batches of completions.
        step=(self.state.global_step, self._step % self.args.gradient_accumulation_steps),
      )
      local = output["advantages"]
      start = self.accelerator.process_index * len(local)
      output["advantages"] = local.new_tensor(advantages[start : start + len(local)])
      _replace_last(self._logs["advantages"], advantages.tolist())
      for name, value in _summary(advantages).items():
        self._metrics["train" if training else "eval"][f"advantage/{name}"].append(value)
      return output

  RuleTrainer.__name__ = RuleTrainer.__qualname__ = f"Rule{trainer_class.__name__}"
  return RuleTrainer  # pyright: ignore[reportReturnType]


def rule_reward(
  reward: Callable[..., Sequence[float | None]],
  rule: GroupRule | Callable[..., Any] | str,
  *,
  num_generations: int,
  seed: int = 0,
) -> Callable[..., list[float | None]]:
  """A reward function that returns the rule's advantages, for those who can't use `with_rule`.

  TRL takes the group's mean off them: nothing changes if, and only if, they sum to zero in every
  group. Needs `scale_rewards="none"`, one reward function, and whole groups on each process
  (`per_device_train_batch_size * steps_per_generation` a multiple of `num_generations`). The logged
  rewards are then advantages.

  Args:
    reward: TRL reward function.
    rule: see `with_rule`; its advantages must sum to zero.
    num_generations: of the trainer's config.
    seed: of rules that draw.

  Raises:
    ValueError: if the rule is not centred, here or at a call; or, at a call, if the rows are no
      whole groups.
  """
  if inspect.iscoroutinefunction(reward):
    raise TypeError("rule_reward takes a plain reward function, not an async one; use with_rule")
  pin_jax_to_cpu()
  host_rule = HostRule(rule, seed=seed)
  host_rule.rule.check_num_rollouts(num_generations)
  probe = np.random.default_rng(0).normal(size=8 * num_generations)
  _check_centred(
    host_rule(contiguous_groups(probe, num_generations)), num_generations, host_rule.rule
  )

  @functools.wraps(reward)
  def advantages(*, prompts, trainer_state=None, **kwargs):
    rewards = reward(prompts=prompts, trainer_state=trainer_state, **kwargs)
    for row, prompt in enumerate(prompts):
      if prompt != prompts[row - row % num_generations]:
        raise ValueError(
          f"row {row} is another prompt than row {row - row % num_generations}: rule_reward needs "
          f"whole groups of num_generations={num_generations} on each process"
        )
    values = np.array([np.nan if value is None else value for value in rewards], np.float64)
    step = 0 if trainer_state is None else trainer_state.global_step
    result = host_rule(contiguous_groups(values, num_generations, unscored=True), step=(step,))
    _check_centred(result, num_generations, host_rule.rule)
    return [None if np.isnan(v) else float(a) for v, a in zip(values, result, strict=True)]

  return advantages


def total_rewards(
  rewards: np.ndarray, weights: np.ndarray, *, num_generations: int, aggregation: str
) -> np.ndarray:
  """One reward a completion from one a function, as TRL adds them up.

  Args:
    rewards: `[rows, num_functions]`, NaN where a function returned None.
    weights: `[num_functions]`.
    num_generations: rows of a group.
    aggregation: "sum_then_normalize" adds the rewards, "normalize_then_sum" standardises each
      function's in the group first.

  Returns:
    `[rows]` float64, NaN where no function gave a reward.
  """
  scored = ~np.isnan(rewards)
  values = rewards.astype(np.float64)
  if aggregation == "normalize_then_sum":
    grouped = values.reshape(-1, num_generations, values.shape[-1])
    present = scored.reshape(grouped.shape)
    count = present.sum(1, keepdims=True)
    centred = grouped - np.where(present, grouped, 0).sum(1, keepdims=True) / np.maximum(count, 1)
    variance = np.where(present, centred**2, 0).sum(1, keepdims=True) / np.maximum(count - 1, 1)
    values = (centred / (np.sqrt(variance) + 1e-4)).reshape(values.shape)
  totals = np.where(scored, values * weights, 0).sum(-1)
  return np.where(scored.any(-1), totals, np.nan)


def loss_remarks(args: Any) -> list[str]:
  """What in a `GRPOConfig` makes the update no multiple of the trajectory policy gradient.

  Rules promise E[sum_i A_i score_i], score_i the gradient of a whole completion's log-prob.
  """
  remarks = []
  if args.loss_type not in _TRAJECTORY_LOSSES:
    remarks.append(
      f"loss_type={args.loss_type!r} weighs completions by their lengths, which changes what the "
      "advantage rule optimises; loss_type='dr_grpo' (constant divisor) does not"
    )
  truncated = [
    f"{name}={getattr(args, name)}"
    for name, off in (("top_p", (None, 1.0)), ("top_k", (None, 0, -1)), ("min_p", (None, 0.0)))
    if getattr(args, name, None) not in off
  ]
  if truncated:
    remarks.append(
      f"{', '.join(truncated)} cuts the sampling law off, and the loss's log-probabilities are "
      "of the full one; top_p=1.0, top_k=0, min_p=None sample what is trained"
    )
  if getattr(args, "top_entropy_quantile", 1.0) < 1.0:
    remarks.append(
      f"top_entropy_quantile={args.top_entropy_quantile} drops tokens from the loss; "
      "top_entropy_quantile=1.0 keeps whole completions"
    )
  if getattr(args, "mask_truncated_completions", False):
    remarks.append(
      "mask_truncated_completions=True drops completions from the loss that the rule has compared "
      "with the others; mask_truncated_completions=False keeps them"
    )
  return [f"tea_jax in TRL: {remark}." for remark in remarks]


def _replace_last(log: Any, values: list[float]) -> None:
  """Puts `values` in the place of the newest entries of a bounded deque."""
  for _ in range(min(len(values), len(log))):
    log.pop()
  log.extend(values)


def _summary(advantages: np.ndarray) -> dict[str, float]:
  return {
    "mean": float(advantages.mean()),
    "std": float(advantages.std()),
    "min": float(advantages.min()),
    "max": float(advantages.max()),
    "nonzero_frac": float(np.mean(advantages != 0)),
  }


def _check_centred(advantages: np.ndarray, num_generations: int, rule: GroupRule) -> None:
  groups = advantages.astype(np.float64).reshape(-1, num_generations)
  total, size = np.abs(groups.sum(1)), np.abs(groups).sum(1)
  if np.any(total > 1e-4 * size):
    raise ValueError(
      f"the advantages of {rule!r} do not sum to zero in each group, and TRL would take their mean "
      "off; use with_rule(GRPOTrainer, rule), which trains them as they are"
    )
