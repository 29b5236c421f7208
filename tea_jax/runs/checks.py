"""Checks that the groups of flags share: a value of its type, or a sentence."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import math
import numbers
import reprlib
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any

_naming: contextvars.ContextVar[Callable[[str], str]] = contextvars.ContextVar(
  "naming", default=str
)


@contextlib.contextmanager
def named_by(naming: Callable[[str], str]) -> Iterator[None]:
  """In this block `naming` rewrites what checks say, so that it speaks of flags, say.

  Whoever parses flags catches the errors itself, and would not hand them on to be rewritten.
  """
  token = _naming.set(naming)
  try:
    yield
  finally:
    _naming.reset(token)


def require(condition: bool, message: str) -> None:
  """Raises ValueError with the message unless the condition holds."""
  if not condition:
    raise ValueError(_naming.get()(message))


def check_fields(config: Any, group: str = "") -> None:
  """Gives every field of a frozen dataclass a value of its type.

  Flags are parsed by type; Python and YAML are not. What can be converted without loss is: `16.0`
  and "16" are 16, a single name is a tuple of one.

  Args:
    config: being made; its `__post_init__` calls this first.
    group: of the flags, for the message.

  Raises:
    ValueError: naming the field, its value and what it must be.
  """
  hints = typing.get_type_hints(type(config))
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    name = f"{group}.{field.name}" if group else field.name
    try:
      converted = convert(value, hints[field.name])
    except ValueError as error:
      shown = repr(value) if isinstance(value, str | float) else reprlib.repr(value)
      raise ValueError(_naming.get()(f"{name}={shown[:80]} {error}.")) from None
    if converted is not value:
      object.__setattr__(config, field.name, converted)


def convert(value: Any, hint: Any, *, finite: bool = True) -> Any:
  """`value` as the type `hint`, without loss.

  Args:
    value: from flags, YAML or Python.
    hint: a type of a field: bool, int, float, str, Literal, unions, tuples, dataclasses.
    finite: refuse infinite floats.

  Raises:
    ValueError: going on after "name=value" with what it must be.
  """
  origin, arguments = typing.get_origin(hint), typing.get_args(hint)
  if origin is typing.Literal:
    if not any(value == choice and type(value) is type(choice) for choice in arguments):
      choices = ", ".join(map(repr, arguments))
      kind = (
        "is a text, but must be"
        if isinstance(value, str) and not isinstance(arguments[0], str)
        else "is unknown; choose"
      )
      raise ValueError(f"{kind} one of {choices}")
    return value
  if origin in (typing.Union, types.UnionType):
    return _one_of(value, arguments, finite=finite)
  if origin is tuple:
    if isinstance(value, typing.Mapping | set | frozenset) or value is None:
      raise ValueError("must be a list")
    items = value if isinstance(value, tuple | list) else (value,)
    return tuple(convert(item, arguments[0], finite=finite) for item in items)
  if dataclasses.is_dataclass(hint):
    if not isinstance(value, typing.cast(type, hint)):
      raise ValueError(f"must be a {getattr(hint, '__name__', hint)}")
    return value
  return _CONVERTERS[hint](value, finite) if hint in _CONVERTERS else value


def _one_of(value: Any, hints: tuple[Any, ...], *, finite: bool) -> Any:
  if value is None and type(None) in hints:
    return None
  errors = []
  # Numbers before texts are turned into numbers: a choice that is meant literally comes first.
  for hint in sorted(hints, key=lambda hint: typing.get_origin(hint) is not typing.Literal):
    if hint is type(None):
      continue
    try:
      return convert(value, hint, finite=finite)
    except ValueError as error:
      errors.append(str(error))
  none = ", or null" if type(None) in hints else ""
  raise ValueError(" or ".join(dict.fromkeys(errors)) + none)


def _bool(value: Any, finite: bool) -> bool:
  del finite
  if isinstance(value, bool):
    return value
  if isinstance(value, str):
    raise ValueError("is a text, but must be true or false, without quotes")
  raise ValueError("must be true or false")


def _int(value: Any, finite: bool) -> int:
  number = _float(value, finite, what="a whole number")
  if not number.is_integer():
    raise ValueError("must be a whole number")
  return int(value) if isinstance(value, numbers.Integral) else int(number)


def _float(value: Any, finite: bool, *, what: str = "a number") -> float:
  if isinstance(value, str):
    try:
      value = float(value)  # YAML reads 1e-5, without a point, as a text
    except ValueError:
      raise ValueError(f"is a text, but must be {what}") from None
  if isinstance(value, bool) or not isinstance(value, numbers.Real):
    raise ValueError(f"must be {what}")
  try:
    number = float(value)
  except OverflowError:
    raise ValueError(f"must be {what} in the range of floats") from None
  if math.isnan(number) or (finite and math.isinf(number)):
    raise ValueError(f"must be {what}, and finite")
  return number


def _str(value: Any, finite: bool) -> str:
  del finite
  if not isinstance(value, str):
    raise ValueError("must be a text; put it in quotes")
  return value


_CONVERTERS: dict[Any, Any] = {bool: _bool, int: _int, float: _float, str: _str}
