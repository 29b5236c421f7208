"""Arguments that a user says (as flags, in YAML, in Python) checked against a function's signature.

A function says its arguments once; this reads them there. Texts become what the annotation asks
for, numbers keep their value or are refused.
"""

from __future__ import annotations

import ast
import collections.abc
import contextlib
import inspect
import numbers
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np


def checked_arguments(
  function: Callable[..., Any], arguments: Mapping[str, Any], what: str
) -> dict[str, Any]:
  """The arguments as `function` wants them: `{"budget": "64"}` -> `{"budget": 64}`.

  Args:
    function: its parameters' annotations say the types; one without an annotation has the type of
      its default.
    arguments: by name; values of Python or texts of a command line.
    what: names the function in messages, e.g. "advantage rule 'tea'".

  Raises:
    ValueError: for a name that the function does not have (those that it has are listed), a value
      that its type does not hold, or an argument that is missing.
  """
  parameters = named_parameters(function)
  open_ended = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(function).parameters.values())
  unknown = [name for name in arguments if name not in parameters]
  if unknown and not open_ended:
    raise ValueError(
      f"{what} has no argument {', '.join(map(repr, unknown))}; "
      f"it has: {', '.join(parameters) or 'none'}"
    )
  missing = [
    name for name, p in parameters.items() if p.default is p.empty and name not in arguments
  ]
  if missing:
    raise ValueError(f"{what} needs {', '.join(map(repr, missing))}, which has no default")
  hints = _argument_types(function)
  checked = {}
  for name, value in arguments.items():
    kind = hints.get(name, Any)
    try:
      checked[name] = _convert(value, kind)
    except (ValueError, TypeError, OverflowError):
      raise ValueError(f"{what}: {name}={value!r} must be {_type_name(kind)}") from None
  return checked


def named_parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
  """The parameters that can be given by name."""
  named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
  parameters = inspect.signature(function).parameters
  return {name: p for name, p in parameters.items() if p.kind in named}


def _argument_types(function: Callable[..., Any]) -> dict[str, Any]:
  """Type of each named parameter: its annotation, else that of its default, else `Any`."""
  try:
    hints = typing.get_type_hints(function)
  except (NameError, TypeError, AttributeError):
    hints = {}
  return {
    name: hints.get(name, _type_of_default(p)) for name, p in named_parameters(function).items()
  }


def _type_of_default(parameter: inspect.Parameter) -> Any:
  plain = isinstance(parameter.default, (bool, int, float, str))
  return type(parameter.default) if plain else Any


def _type_name(kind: Any) -> str:
  """`one of 'kl', 'n-1', or a float`: a type in the words of a sentence."""
  arms = _arms(kind)
  if len(arms) > 1:
    return " or ".join(map(_type_name, arms))
  if typing.get_origin(kind) is Literal:
    choices = typing.get_args(kind)
    return ("one of " if len(choices) > 1 else "") + ", ".join(map(repr, choices))
  if _is_sequence(kind):
    inner = [arm for arm in typing.get_args(kind) if arm is not Ellipsis]
    return f"a list of {getattr(inner[0], '__name__', 'value')}s" if inner else "a list"
  if kind in (None, type(None)):
    return "None"
  return f"{'an' if kind is int else 'a'} {getattr(kind, '__name__', kind)}"


def _arms(kind: Any) -> tuple[Any, ...]:
  union = typing.get_origin(kind) in (typing.Union, types.UnionType)
  return typing.get_args(kind) if union else (kind,)


def _is_sequence(kind: Any) -> bool:
  return (typing.get_origin(kind) or kind) in (tuple, list, collections.abc.Sequence)


def _convert(value: Any, kind: Any) -> Any:
  arms = _arms(kind)
  if len(arms) > 1:
    for arm in arms:
      with contextlib.suppress(ValueError, TypeError, OverflowError):
        return _convert(value, arm)
    raise ValueError(value)
  if typing.get_origin(kind) is Literal:
    return _choice(value, typing.get_args(kind))
  if _is_sequence(kind):
    return _sequence(value, kind)
  converters = {bool: _bool, int: _int, float: _float, type(None): _none, None: _none, str: _text}
  if kind in converters:
    return converters[kind](value)
  return _literal(value) if isinstance(value, str) else value


def _choice(value: Any, choices: tuple[Any, ...]) -> Any:
  for choice in choices:
    if value == (choice if type(choice) is type(value) else str(choice)):
      return choice
  raise ValueError(value)


def _sequence(value: Any, kind: Any) -> tuple[Any, ...]:
  if isinstance(value, str):
    inside = value.strip().strip("()[]")
    value = [part.strip() for part in inside.split(",") if part.strip()]
  inner = typing.get_args(kind) or (Any,)
  if isinstance(value, Mapping):
    raise TypeError(value)
  values = tuple(value)
  if typing.get_origin(kind) is tuple and Ellipsis not in inner and inner != (Any,):
    return tuple(_convert(v, arm) for v, arm in zip(values, inner, strict=True))
  return tuple(_convert(v, inner[0]) for v in values)


def _bool(value: Any) -> bool:
  if isinstance(value, (bool, np.bool_)):
    return bool(value)
  return _choice(_text(value).lower(), ("true", "false")) == "true"


def _int(value: Any) -> int:
  if isinstance(value, str):
    with contextlib.suppress(ValueError):
      return int(value)
    value = float(value)
  if isinstance(value, numbers.Integral) and not isinstance(value, (bool, np.bool_)):
    return int(value)
  number = _float(value)
  if not number.is_integer():
    raise ValueError(value)
  return int(number)


def _float(value: Any) -> float:
  if isinstance(value, str):
    return float(value)
  if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
    raise ValueError(value)
  number = float(value)
  if number != value and number == number:
    raise ValueError(value)  # an int of more than 53 bits
  return number


def _none(value: Any) -> None:
  if value is not None and _text(value).lower() not in ("none", "null"):
    raise ValueError(value)


def _text(value: Any) -> str:
  if not isinstance(value, str):
    raise ValueError(value)
  return value


def _literal(text: str) -> Any:
  with contextlib.suppress(ValueError):
    return _bool(text)
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return text
