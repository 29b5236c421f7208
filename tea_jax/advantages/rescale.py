"""One scale for all rules: advantages as large as the centred rewards.

Rules of the same objective differ in scale by tenfold, and with it in what a learning rate or a KL
coefficient means. Rescaled, every rule's advantages have the root mean square of r - mean(r), which
is what `grpo` gives.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tea_jax.advantages.rule import GroupRule

AdvantageScale = Literal["none", "group", "batch"]

_DECAY = 0.9  # of the tracked mean squares: about ten steps


class ScaleState(NamedTuple):
  """Tracked mean squares of a rescaled rule.

  Attributes:
    rewards: of the centred rewards.
    advantages: of the rule's own advantages.
    inner: state of the rule itself.
  """

  rewards: Float[Array, ""]
  advantages: Float[Array, ""]
  inner: Any


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class RescaledRule(GroupRule):
  """A rule whose advantages are multiplied; see `rescaled`."""

  rule: GroupRule | None = None
  scale: AdvantageScale = "group"

  def __repr__(self) -> str:
    return f"rescaled({self.rule!r}, scale={self.scale!r})"

  def __call__(self, rewards, *, where=None, **inputs) -> Array:
    assert self.rule is not None
    advantages = self.rule(rewards, where=where, **inputs)
    axis = -1 if self.scale == "group" else None
    size, own = mean_squares(jnp.asarray(rewards), advantages, where=where, axis=axis)
    return _multiplied(advantages, size, own)

  def init(self) -> Any:
    assert self.rule is not None
    inner = self.rule.init()
    zero = jnp.zeros((), jnp.float32)
    return inner if self.scale == "group" else ScaleState(zero, zero, inner)

  def update(self, state: Any, rewards, *, step, where=None, answers=None, **inputs):
    assert self.rule is not None
    inner = state if self.scale == "group" else state.inner
    advantages, inner = self.rule.update(
      inner, rewards, step=step, where=where, answers=answers, **inputs
    )
    rewards = jnp.asarray(rewards)
    if self.scale == "group":
      size, own = mean_squares(rewards, advantages, where=where, axis=-1)
      return _multiplied(advantages, size, own), inner
    size, own = mean_squares(rewards, advantages, where=where, axis=None)
    size = _DECAY * state.rewards + (1 - _DECAY) * size.astype(jnp.float32).reshape(())
    own = _DECAY * state.advantages + (1 - _DECAY) * own.astype(jnp.float32).reshape(())
    return _multiplied(advantages, size, own), ScaleState(size, own, inner)


def rescaled(rule: GroupRule, scale: AdvantageScale) -> GroupRule:
  """`rule` with advantages of the same root mean square as the centred rewards.

  The order of the advantages and their sign stay; a coefficient and a learning rate that suit
  `grpo` then mean about the same. "About": a tail rule spends more of its size on noise, so only
  `objective.kl_target` makes the KL equal.

  Args:
    rule: to rescale.
    scale: "none" returns the rule itself; "group" one factor a group (a group with little to learn
      then counts as much as any other); "batch" one factor for the batch, averaged over about ten
      steps by `update` and kept in checkpoints, which leaves groups their weights.

  Raises:
    ValueError: for another scale.

  Example:
    >>> rule = rescaled(tea_jax.max_at_k(k=2), "group")
    >>> advantages = rule(jnp.array([1.0, 2.0, 3.0, 6.0]))
    >>> round(float(jnp.mean(advantages**2)), 4)  # of the centred rewards: 14 / 4
    3.5
  """
  check_scale(scale)
  if scale == "none":
    return rule
  fields = {f.name: getattr(rule, f.name) for f in dataclasses.fields(GroupRule) if f.init}
  return RescaledRule(**fields, rule=rule, scale=scale)


def check_scale(scale: str) -> None:
  """Raises ValueError for a scale that `rescaled` does not know."""
  if scale not in get_args(AdvantageScale):
    raise ValueError(f"scale={scale!r} must be one of {', '.join(get_args(AdvantageScale))}")


def mean_squares(
  rewards: Float[Array, "*batch m"],
  advantages: Float[Array, "*batch m"],
  *,
  where: Array | None = None,
  axis: int | None = None,
) -> tuple[Array, Array]:
  """Mean squares of the rewards, centred in their groups, and of the advantages, dimensions kept.

  Args:
    rewards, advantages: `[..., m]`.
    where: `[..., m]`, the rollouts that count; None for all.
    axis: -1 for each group, None for all groups together.
  """
  counted = jnp.ones(rewards.shape, bool) if where is None else jnp.asarray(where)
  values = jnp.where(counted, rewards, 0).astype(jnp.promote_types(rewards.dtype, jnp.float32))
  group = jnp.maximum(counted.sum(-1, keepdims=True), 1)
  centred = jnp.where(counted, values - values.sum(-1, keepdims=True) / group, 0)
  total = jnp.maximum(counted.sum(axis, keepdims=True), 1)
  squares = [
    jnp.sum(x.astype(values.dtype) ** 2, axis, keepdims=True) for x in (centred, advantages)
  ]
  return squares[0] / total, squares[1] / total


def _multiplied(advantages: Array, size: Array, own: Array) -> Array:
  factor = jnp.sqrt(size / jnp.where(own > 0, own, 1))
  return jax.lax.stop_gradient((advantages * factor).astype(advantages.dtype))
