"""Flags of the advantage rules, read off the registered factories so that nothing is said twice."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from typing import Annotated, Any

import tyro

from tea_jax import advantages as _rules  # noqa: F401  (registers the rules)
from tea_jax.advantages.rule import advantage_factory, available_advantages


class _AdvantageBase:
  """The advantage rule. An option of another rule than the chosen one is refused."""

  name: str

  def arguments(self) -> dict[str, Any]:
    """Those options that were set, for `make_advantage`."""
    fields = dataclasses.fields(typing.cast(Any, self))
    values = {f.name: getattr(self, f.name) for f in fields if f.name != "name"}
    return {name: value for name, value in values.items() if value is not None}


def _options() -> list[tuple[str, Any, Any]]:
  """(name, type, default) of the union of all factories' arguments, each optional."""
  kinds: dict[str, Any] = {}
  taken: dict[str, list[str]] = {}
  for rule in available_advantages():
    factory = advantage_factory(rule)
    hints = typing.get_type_hints(factory)
    for name, parameter in inspect.signature(factory).parameters.items():
      kinds[name] = kinds.get(name) | hints[name] if name in kinds else hints[name] | None
      taken.setdefault(name, []).append(f"{rule} ({parameter.default})")
  return [
    (
      name,
      Annotated[kinds[name], tyro.conf.arg(help=f"of {', '.join(taken[name])}")],
      dataclasses.field(default=None),
    )
    for name in kinds
  ]


_NAME = Annotated[
  str, tyro.conf.arg(help=f"one of {', '.join(available_advantages())}, or a registered one")
]

AdvantageOptions = dataclasses.make_dataclass(
  "AdvantageOptions",
  [("name", _NAME, dataclasses.field(default="tea")), *_options()],
  bases=(_AdvantageBase,),
  frozen=True,
  namespace={"__doc__": _AdvantageBase.__doc__},
)
