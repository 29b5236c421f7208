"""The contract of an advantage rule, and the checks that every rule shares.

A rule maps the rewards of a group of rollouts to their advantages:

  rule = tea_jax.tea(tail_fraction=0.25, budget=128)
  advantages = rule(rewards)            # [..., num_rollouts] -> [..., num_rollouts]

Some rules need more than rewards (a key, log-probabilities, answers): those are named inputs of one
common signature, a rule ignores what it does not need, and says in one sentence what is missing.

Axes: the last axis is the group, m = `num_rollouts`; leading axes are prompts. `n <= m` is the
number of rollouts that count, where `where` marks some that do not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from tea_jax.advantages.tracking import Tracker


@runtime_checkable
class AdvantageRule(Protocol):
  """Rewards of groups of rollouts in, advantages of the same shape and dtype out.

  Pure, safe under `jax.jit` and `jax.vmap`, gradients stopped, finite for finite rewards. Rollouts
  outside `where` get advantage 0 and influence nothing; a group in which fewer than
  `minimum_rollouts` count gets zeros.
  """

  name: str
  minimum_rollouts: int
  needs: tuple[str, ...]

  def __call__(
    self,
    rewards: Float[ArrayLike, "*batch num_rollouts"],
    *,
    key: Array | None = None,
    where: Bool[ArrayLike, "*batch num_rollouts"] | None = None,
    logprobs: Float[ArrayLike, "*batch num_rollouts"] | None = None,
    answers: Int[ArrayLike, "*batch num_rollouts"] | None = None,
    quantiles: Float[ArrayLike, "*batch num_rollouts"] | None = None,
    thresholds: Float[ArrayLike, "*batch"] | None = None,
  ) -> Float[Array, "*batch num_rollouts"]:
    """Computes advantages.

    Args:
      rewards: `[..., num_rollouts]`, floating point.
      key: random key of rules that order or split the group at random.
      where: `[..., num_rollouts]`, True for the rollouts that count; None for all.
      logprobs: `[..., num_rollouts]` log-probability of each whole completion.
      answers: `[..., num_rollouts]` integer id of each final answer, negative if unparsable.
      quantiles: `[..., num_rollouts]` tracked share of the policy's rewards below each reward.
      thresholds: `[...]` or a scalar, tracked number of votes that wins.
    """
    ...


class Group(NamedTuple):
  """What the arithmetic of a rule sees: checked arrays in the dtype of the computation.

  Attributes:
    rewards: `[..., m]`, float32 (or float64); outside `where` the value of a rollout that counts.
    where: `[..., m]` or None when every rollout counts (the fast path).
    count: n, an int when every rollout counts, else `[..., 1]` int32.
    scale: `[..., 1]` or 1: `rewards` have been divided by it.
    key, logprobs, answers, quantiles, thresholds: see `AdvantageRule`.
  """

  rewards: Array
  where: Array | None
  count: Any
  scale: Any = 1.0
  key: Array | None = None
  logprobs: Array | None = None
  answers: Array | None = None
  quantiles: Array | None = None
  thresholds: Array | None = None


INPUTS = {
  "key": "a random key, e.g. key=jax.random.fold_in(key, step)",
  "logprobs": "logprobs=[..., num_rollouts], the log-probability of each whole completion",
  "answers": "answers=[..., num_rollouts], integer ids of the final answers (negative: unparsable)",
  "quantiles": "quantiles=[..., num_rollouts], tracked quantiles: call `rule.update`",
  "thresholds": "thresholds=[...], tracked vote thresholds: call `rule.update`",
}


@dataclasses.dataclass(frozen=True, eq=False)
class GroupRule:
  """An `AdvantageRule` made of its arithmetic; `print(rule)` shows the resolved parameters.

  Attributes:
    name: name in the registry.
    compute: `Group -> [..., m]`, the arithmetic.
    parameters: resolved arguments of the factory, for logs.
    needs: named inputs without which the rule cannot be computed.
    accepts: named inputs that it uses where they are given.
    minimum_rollouts: the smallest group that can get a non-zero advantage.
    scale_degree: d if multiplying rewards by s > 0 multiplies advantages by s^d. Then rewards
      beyond 2^40 are scaled down before the arithmetic, which may square them. None: not scaled.
    minimum_for: the same for a given m, where it depends on m.
    check: raises for a number of rollouts that the rule cannot handle at all.
    tracker: statistics carried from step to step, see `update`; None for a stateless rule.
  """

  name: str
  compute: Callable[[Group], Array]
  parameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  needs: tuple[str, ...] = ()
  accepts: tuple[str, ...] = ()
  minimum_rollouts: int = 2
  scale_degree: int | None = None
  minimum_for: Callable[[int], int] | None = None
  check: Callable[[int], Any] | None = None
  tracker: Tracker | None = None
  _compiled: Callable[..., Array] = dataclasses.field(init=False, repr=False)

  def __post_init__(self):
    object.__setattr__(self, "_compiled", jax.jit(self._evaluate))

  def __repr__(self) -> str:
    return f"{self.name}({', '.join(f'{k}={v!r}' for k, v in self.parameters.items())})"

  def __call__(
    self,
    rewards,
    *,
    key=None,
    where=None,
    logprobs=None,
    answers=None,
    quantiles=None,
    thresholds=None,
  ) -> Array:
    rewards = _checked_rewards(rewards, self.name)
    inputs = {
      "key": key,
      "logprobs": _checked("logprobs", logprobs, rewards.shape),
      "answers": _checked("answers", answers, rewards.shape),
      "quantiles": _checked("quantiles", quantiles, rewards.shape),
      "thresholds": None if thresholds is None else jnp.asarray(thresholds),
    }
    for needed in self.needs:
      if inputs[needed] is None:
        raise ValueError(f"advantage rule {self!r} needs {INPUTS[needed]}; got {needed}=None")
    used = (*self.needs, *self.accepts)
    inputs = {name: value if name in used else None for name, value in inputs.items()}
    where = _checked("where", where, rewards.shape)
    if self.check is not None:
      self.check(rewards.shape[-1])
    return self._compiled(rewards, where, inputs)

  def _evaluate(self, rewards: Array, where: Array | None, inputs: dict[str, Any]) -> Array:
    dtype, num_rollouts = rewards.dtype, rewards.shape[-1]
    if num_rollouts < self.smallest_group(num_rollouts):
      return jnp.zeros_like(rewards)
    values = jax.lax.stop_gradient(rewards).astype(jnp.promote_types(dtype, jnp.float32))
    count = num_rollouts
    if where is not None:
      where = where.astype(bool)
      # A rollout that does not count may hold anything (NaN from a failed reward): replace it by
      # one that does, which also leaves the group's range as it is.
      stand_in = jnp.max(jnp.where(where, values, -jnp.inf), -1, keepdims=True)
      values = jnp.where(where, values, jnp.where(jnp.isneginf(stand_in), 0, stand_in))
      count = jnp.sum(where, -1, keepdims=True, dtype=jnp.int32)
    scale = None
    if self.scale_degree is not None:
      scale = _power_of_two_above(jnp.max(jnp.abs(values), -1, keepdims=True), threshold=40)
      values = values / scale
    inputs = {
      name: jax.lax.stop_gradient(value) if name in ("logprobs", "quantiles") else value
      for name, value in inputs.items()
    }
    advantages = self.compute(
      Group(values, where, count, 1.0 if scale is None else scale, **inputs)
    )
    if self.scale_degree and scale is not None:
      advantages = advantages * scale
    if where is not None:
      enough = count >= self.smallest_group(num_rollouts)
      advantages = jnp.where(where & enough, advantages, 0)
    largest = float(jnp.finfo(dtype).max)
    return jax.lax.stop_gradient(jnp.clip(advantages, -largest, largest).astype(dtype))

  def smallest_group(self, num_rollouts: int) -> int:
    """How many of `num_rollouts` must count for an advantage to be other than 0."""
    return self.minimum_rollouts if self.minimum_for is None else self.minimum_for(num_rollouts)

  def check_num_rollouts(self, num_rollouts: int) -> None:
    """Refuses, before a run, a group size at which this rule fails or always gives zeros."""
    if self.check is not None:
      self.check(num_rollouts)
    if num_rollouts < self.smallest_group(num_rollouts):
      raise ValueError(
        f"num_rollouts={num_rollouts} is too small for {self!r}, which would give every rollout "
        f"advantage 0; use num_rollouts >= {self.minimum_rollouts}"
      )

  def init(self) -> Any:
    """Initial state of the tracked statistics; `()` for a stateless rule."""
    return () if self.tracker is None else self.tracker.init()

  def update(self, state: Any, rewards, *, step, where=None, answers=None, **inputs):
    """Advantages with tracked statistics: `(state, rewards) -> (advantages, next state)`.

    The statistics are read before the rewards of this step enter them. A stateless rule passes
    its state through, so that a trainer can call every rule in this way.

    Args:
      state: from `init` or the previous call; a pytree of arrays, to be kept in checkpoints.
      rewards: `[..., num_rollouts]`.
      step: integer training step, the age of the statistics.
      where, answers: see `AdvantageRule`.
      **inputs: other named inputs of the rule.
    """
    if self.tracker is not None:
      rewards = _checked_rewards(rewards, self.name)
      if self.tracker.needs_answers and answers is None:
        raise ValueError(f"advantage rule {self!r} needs {INPUTS['answers']}; got answers=None")
      tracked, state = self.tracker.observe(
        state,
        rewards,
        step=step,
        where=_checked("where", where, rewards.shape),
        answers=_checked("answers", answers, rewards.shape),
      )
      inputs = {**inputs, **tracked}
    return self(rewards, where=where, answers=answers, **inputs), state


def _checked_rewards(rewards, name: str) -> Array:
  rewards = jnp.asarray(rewards)
  if rewards.ndim < 1:
    raise ValueError(f"{name}: rewards must be [..., num_rollouts], got a scalar")
  if not jnp.issubdtype(rewards.dtype, jnp.floating):
    raise TypeError(
      f"{name}: rewards must be floating point, got {rewards.dtype}; "
      "convert them, e.g. rewards.astype(jnp.float32)"
    )
  return rewards


def _checked(name: str, value, shape: tuple[int, ...]) -> Array | None:
  if value is None:
    return None
  value = jnp.asarray(value)
  if value.shape != shape:
    raise ValueError(f"{name} has shape {value.shape}, but rewards have shape {shape}")
  kinds = {"where": jnp.bool_, "answers": jnp.integer}
  if name in kinds and not jnp.issubdtype(value.dtype, kinds[name]):
    raise TypeError(f"{name} must be {kinds[name].__name__}, got {value.dtype}")
  return value


def _power_of_two_above(magnitude: Array, *, threshold: int) -> Array:
  """2^max(e - threshold, 0) for magnitude in [2^(e-1), 2^e): dividing by it is exact."""
  _, exponent = jnp.frexp(magnitude)
  return jnp.ldexp(jnp.ones_like(magnitude), jnp.maximum(exponent - threshold, 0))
