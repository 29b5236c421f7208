"""Checks that the groups of flags share: a sentence instead of a traceback."""

from __future__ import annotations

import typing
from typing import Any


def require(condition: bool, message: str) -> None:
  """Raises ValueError with the message unless the condition holds."""
  if not condition:
    raise ValueError(message)


def check_choices(config: Any) -> None:
  """Refuses a value of a `Literal` field that is none of its choices, and numbers that are texts.

  Flags are checked while they are parsed; Python and YAML are not.
  """
  for name, hint in typing.get_type_hints(type(config)).items():
    value = getattr(config, name)
    choices = typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else None
    require(
      choices is None or value in choices,
      f"{name}={value!r} is unknown; choose one of {', '.join(map(repr, choices or ()))}.",
    )
    numeric = hint in (float, int, float | None, int | None)
    require(
      not (numeric and isinstance(value, str)), f"{name}={value!r} is a text, but must be a number."
    )
