"""Rules by name, for flags and for rules of one's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import Array

from tea_jax.advantages.rule import INPUTS, Group, GroupRule

_REGISTRY: dict[str, Callable[..., Any]] = {}


def register_advantage(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
  """Decorator: makes a factory of rules available to flags under `name`.

  The factory takes keyword arguments and returns a `GroupRule`, or any function
  `(rewards, *, where=None, ...) -> advantages` that takes some of the named inputs.

    @register_advantage("signed")
    def signed(*, margin: float = 0.0):
      return lambda rewards, *, where=None: jnp.sign(rewards - margin)

  Raises:
    ValueError: if the name is taken by another factory.
  """

  def register(factory: Callable[..., Any]) -> Callable[..., Any]:
    taken = _REGISTRY.get(name)
    if taken is not None and (taken.__module__, taken.__qualname__) != (
      factory.__module__,
      factory.__qualname__,
    ):
      raise ValueError(
        f"advantage rule {name!r} is already registered by {taken.__module__}.{taken.__qualname__}"
      )
    _REGISTRY[name] = factory
    return factory

  return register


def available_advantages() -> tuple[str, ...]:
  """Names of all registered rules, sorted."""
  return tuple(sorted(_REGISTRY))


def advantage_factory(name: str) -> Callable[..., Any]:
  """The registered factory of that name.

  Raises:
    ValueError: for an unknown name; the message lists the registered ones.
  """
  if name not in _REGISTRY:
    raise ValueError(
      f"unknown advantage rule {name!r}; available: {', '.join(available_advantages())}"
    )
  return _REGISTRY[name]


def make_advantage(name: str, **arguments: Any) -> GroupRule:
  """Builds a registered rule, e.g. `make_advantage("tea", budget=128)`.

  Raises:
    ValueError: for an unknown name or argument; the message lists what exists.
  """
  factory = advantage_factory(name)
  accepted = inspect.signature(factory).parameters
  unknown = [argument for argument in arguments if argument not in accepted]
  if unknown and not any(p.kind is p.VAR_KEYWORD for p in accepted.values()):
    raise ValueError(
      f"advantage rule {name!r} has no argument {', '.join(map(repr, unknown))}; "
      f"it has: {', '.join(accepted) or 'none'}"
    )
  rule = factory(**arguments)
  return rule if isinstance(rule, GroupRule) else from_function(name, rule, arguments)


def from_function(
  name: str, function: Callable[..., Array], parameters: Mapping[str, Any] | None = None
) -> GroupRule:
  """A rule from a plain function that takes `rewards` and some of the named inputs.

  A function without a `where` argument still sees masked groups: the rollouts that do not count
  hold the largest reward that does, and their advantages are set to 0 afterwards.
  """
  signature = inspect.signature(function).parameters
  named = [n for n in (*INPUTS, "where") if n in signature]
  required = [n for n in named if signature[n].default is inspect.Parameter.empty]

  def compute(group: Group) -> Array:
    return function(group.rewards, **{n: getattr(group, n) for n in named})

  return GroupRule(
    name,
    compute,
    dict(parameters or {}),
    needs=tuple(n for n in required if n != "where"),
    accepts=tuple(n for n in named if n not in required and n != "where"),
  )
