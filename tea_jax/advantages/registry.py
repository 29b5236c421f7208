"""Rules by name, and `AdvantageSpec`: a rule and its arguments as users say them.

A rule's arguments are written once, in the signature of its factory. Flags, YAML, texts such as
`tea:budget=256` and error messages are read from there.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from tea_jax.advantages.rescale import check_scale, rescaled
from tea_jax.advantages.rule import INPUTS, Group, GroupRule
from tea_jax.runtime.signatures import checked_arguments, named_parameters
from tea_jax.runtime.user_code import explain, load_object

_REGISTRY: dict[str, Callable[..., Any]] = {}


def register_advantage(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
  """Decorator: makes a factory of rules available under `name`, to flags, YAML and Python.

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
  """Names of all registered rules, sorted.

  Example:
    >>> "tea" in available_advantages()
    True
  """
  return tuple(sorted(_REGISTRY))


def advantage_factory(name: str) -> Callable[..., Any]:
  """The factory of a rule: a registered name, or the user's `file.py:factory`, `module:factory`.

  A function there that takes `rewards` itself is the rule; its factory takes no arguments.

  Raises:
    ValueError: for an unknown name (the message lists the registered ones), or a place that cannot
      be imported.
  """
  if name in _REGISTRY:
    return _REGISTRY[name]
  if ":" not in name:
    raise ValueError(
      f"unknown advantage rule {name!r:.80}; available: {', '.join(available_advantages())}, or "
      "your own as file.py:factory or module:factory"
    )
  found = load_object(name)
  return (lambda: found) if "rewards" in inspect.signature(found).parameters else found


def make_advantage(name: str, **arguments: Any) -> GroupRule:
  """Builds a rule by name, e.g. `make_advantage("tea", budget=128)`.

  Raises:
    ValueError: for an unknown name or argument (the message lists what exists), or a value that
      the rule refuses.

  Example:
    >>> make_advantage("rloo")
    rloo()
  """
  return AdvantageSpec(name, arguments).build()


def rule_words(text: str) -> list[str]:
  """The name in a rule's text and its `argument=value` parts, not yet checked.

  Example:
    >>> rule_words("prefix_tea:fractions=0.5,1.0,order=1")
    ['prefix_tea', 'fractions=0.5,1.0', 'order=1']
    >>> rule_words("my_file.py:factory:margin=0.5")
    ['my_file.py:factory', 'margin=0.5']
  """
  name, _, rest = text.partition(":")
  first, _, after = rest.partition(":")
  if name not in _REGISTRY and first.isidentifier():
    name, rest = f"{name}:{first}", after
  parts: list[str] = []
  for part in filter(None, rest.split(",")):
    if parts and "=" not in part:
      parts[-1] += f",{part}"
    else:
      parts.append(part)
  return [name.strip(), *parts]


@dataclasses.dataclass(frozen=True)
class AdvantageSpec:
  """An advantage rule by name, and those of its arguments that differ from its defaults.

  Example:
    >>> spec = AdvantageSpec.parse("tea:budget=256")
    >>> spec == AdvantageSpec("tea", {"budget": 256}), spec.build().parameters["budget"]
    (True, 256)

  Attributes:
    name: one of `available_advantages()`, or the user's `file.py:factory`, `module:factory`.
    arguments: of the rule's factory; texts are converted as its signature says. Every rule also
      takes `scale`, see `rescaled`.

  Raises:
    ValueError: for a name or an argument that does not exist, or a value of another type.
  """

  name: str = "tea"
  arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)

  def __post_init__(self) -> None:
    factory, arguments = advantage_factory(self.name), dict(self.arguments)
    scale = {} if "scale" in named_parameters(factory) else _take_scale(arguments)
    checked = checked_arguments(factory, arguments, self._what)
    object.__setattr__(self, "arguments", {**checked, **scale})

  @property
  def _what(self) -> str:
    return f"advantage rule {self.name!r}"

  def __str__(self) -> str:
    words = [f"{name}={_text(value)}" for name, value in self.arguments.items()]
    return f"{self.name}:{','.join(words)}" if words else self.name

  @classmethod
  def parse(cls, text: str) -> AdvantageSpec:
    """Reads `tea`, `tea:budget=256,tail_fraction=0.5` or `my_file.py:factory:margin=0.5`.

    A value with commas is a list: `prefix_tea:fractions=0.5,1.0,order=1`.

    Raises:
      ValueError: for a part that is no `argument=value`, and what the class refuses.
    """
    return cls.from_words(rule_words(text))

  @classmethod
  def from_words(cls, words: list[str]) -> AdvantageSpec:
    """Reads `["tea", "budget=256"]`.

    Raises:
      ValueError: for a word that is no `argument=value`, and what the class refuses.
    """
    if not words:
      raise ValueError(f"name an advantage rule: {', '.join(available_advantages())}")
    arguments = {}
    for word in words[1:]:
      key, equals, value = word.partition("=")
      if not equals:
        raise ValueError(
          f"advantage rule {words[0]!r}: {word!r} is not argument=value, as in tea:budget=256"
        )
      arguments[key.strip().replace("-", "_")] = value.strip()
    return cls(words[0], arguments)

  def to_words(self) -> list[str]:
    """`["tea", "budget=256"]`."""
    return [self.name, *(f"{name}={_text(value)}" for name, value in self.arguments.items())]

  @classmethod
  def from_dict(cls, values: Mapping[str, Any]) -> AdvantageSpec:
    """Reads `{"name": "tea", "budget": 256}`, as YAML has it; the name may be a text as above.

    Raises:
      ValueError: what the class refuses.
    """
    named = cls.parse(str(values.get("name", "tea")))
    arguments = {key: value for key, value in values.items() if key != "name"}
    return cls(named.name, {**named.arguments, **arguments})

  def to_dict(self) -> dict[str, Any]:
    """`{"name": "tea", "budget": 256}`."""
    return {"name": self.name, **self.arguments}

  def with_default(self, **arguments: Any) -> AdvantageSpec:
    """The spec with those arguments that the rule has and that are not set."""
    known = named_parameters(advantage_factory(self.name))
    added = {key: value for key, value in arguments.items() if key in known}
    return AdvantageSpec(self.name, {**added, **self.arguments})

  def build(self) -> GroupRule:
    """The rule.

    Raises:
      ValueError: for values that the rule refuses, or a user's factory that fails (with its line).
    """
    factory, arguments = advantage_factory(self.name), dict(self.arguments)
    scale = {} if "scale" in named_parameters(factory) else _take_scale(arguments)
    try:
      rule = factory(**arguments)
    except ValueError:
      raise
    except Exception as error:
      raise ValueError(f"{self._what} cannot be made: {explain(error, kind=True)}") from error
    if not isinstance(rule, GroupRule):
      rule = from_function(self.name, rule, arguments)
    return rescaled(rule, scale.get("scale", "none"))


def _take_scale(arguments: dict[str, Any]) -> dict[str, Any]:
  """Takes `scale` out of the arguments.

  Raises:
    ValueError: for a scale that does not exist.
  """
  if "scale" not in arguments:
    return {}
  scale = arguments.pop("scale")
  check_scale(scale)
  return {"scale": scale}


def _text(value: Any) -> str:
  return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def from_function(
  name: str, function: Callable[..., Array], parameters: Mapping[str, Any] | None = None
) -> GroupRule:
  """A rule from a plain function that takes `rewards` and some of the named inputs.

  A function without a `where` argument still sees masked groups: the rollouts that do not count
  hold the largest reward that does, and their advantages are set to 0 afterwards.

  Raises:
    ValueError: if `function` is no function; and, at the rule's first call or check, one sentence
      with the user's line if it fails, or returns another shape.
  """
  if not callable(function):
    raise ValueError(
      f"advantage rule {name!r}: its factory must return a function of rewards, "
      f"got {type(function).__name__}"
    )
  signature = inspect.signature(function).parameters
  named = [n for n in (*INPUTS, "where") if n in signature]
  required = [n for n in named if signature[n].default is inspect.Parameter.empty]

  def compute(group: Group) -> Array:
    try:
      advantages = function(group.rewards, **{n: getattr(group, n) for n in named})
    except Exception as error:
      raise ValueError(f"advantage rule {name!r} fails: {explain(error, kind=True)}") from error
    if jnp.shape(advantages) != group.rewards.shape:
      raise ValueError(
        f"advantage rule {name!r} returns shape {jnp.shape(advantages)} for rewards of shape "
        f"{group.rewards.shape}; they must be the same"
      )
    return jnp.asarray(advantages)

  @functools.cache
  def check(num_rollouts: int) -> None:
    # Before a run: what fails at the first step costs the loading of a model and a rollout.
    one_group = jax.ShapeDtypeStruct((1, num_rollouts), jnp.float32)
    stand_ins = {
      "key": jax.random.key(0),
      "thresholds": jnp.ones(1),
      "answers": jnp.zeros(one_group.shape, jnp.int32),
    }
    inputs = {n: stand_ins.get(n, jnp.zeros(one_group.shape)) for n in named if n != "where"}
    jax.eval_shape(lambda rewards: compute(Group(rewards, None, num_rollouts, **inputs)), one_group)

  return GroupRule(
    name,
    compute,
    dict(parameters or {}),
    check=check,
    needs=tuple(n for n in required if n != "where"),
    accepts=tuple(n for n in named if n not in required and n != "where"),
  )
