"""Which arguments a reward function gets: by name, whatever their order."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Collection, Mapping
from typing import Any

RESERVED = ("prompts", "completions", "context")
"""Names of arguments that are never data columns."""


def bind(
  reward: Any,
  name: str,
  prompts: list[str],
  completions: list[str],
  columns: Mapping[str, Any],
  context: Any,
) -> inspect.BoundArguments:
  """Arguments of a call of `reward`.

  A function gets prompts, completions, context and columns by the names that it has. One that has
  neither `prompts` nor `completions` where it takes them (as `lambda p, c: ...`) gets prompts and
  completions first. Columns are deep copies.

  Raises:
    ValueError: if the signature cannot be called with these, naming the columns that exist.
  """
  signature = _signature(reward)
  positional = _check(reward, name, signature, columns)
  parameters = signature.parameters.values()
  values = {"prompts": prompts, "completions": completions, "context": context}
  every = any(p.kind is p.VAR_KEYWORD for p in parameters)
  wanted = [
    column
    for column in columns
    if column not in RESERVED and (every or column in _by_name(signature))
  ]
  # One copy of the lot: entries that are one object for all rollouts of a prompt stay one.
  values |= dict(zip(wanted, _copied([columns[column] for column in wanted])))
  if not positional:
    known = {key: values[key] for key in values if every or key in _by_name(signature)}
    return signature.bind(**known)
  first = [prompts, completions]
  taken = {p.name for p in list(parameters)[:2] if p.kind is not p.VAR_POSITIONAL}
  known = {
    key: value
    for key, value in values.items()
    if key not in taken
    and key not in ("prompts", "completions")
    and (every or key in _by_name(signature))
  }
  return signature.bind(*first, **known)


def check_arguments(reward: Any, columns: Collection[str], *, name: str | None = None) -> None:
  """Refuses, before anything is sampled, a reward that cannot be called with these columns.

  Raises:
    ValueError: naming the argument that is missing and the columns that exist.
  """
  parts = getattr(reward, "rewards", None)
  if isinstance(parts, Mapping):
    for part, (function, _) in parts.items():
      check_arguments(function, columns, name=part)
    return
  name = str(name or getattr(reward, "name", None) or getattr(reward, "__name__", "reward"))
  _check(reward, name, _signature(reward), columns)
  missing = [c for c in getattr(reward, "required_columns", ()) if c not in columns]
  if missing:
    raise ValueError(f"reward '{name}' needs {_listed(missing)}; {_existing(columns)}")


def _check(reward: Any, name: str, signature: inspect.Signature, columns: Collection[str]) -> bool:
  """Whether the first two arguments go by position; refuses what cannot be called."""
  if not callable(reward):
    raise ValueError(f"reward '{name}' is a {type(reward).__name__}, which cannot be called")
  parameters = list(signature.parameters.values())
  if "context" in columns and "context" in _by_name(signature):
    raise ValueError(
      f"reward '{name}' asks for 'context', which is reserved for the run's context, but the data "
      "have a column of that name; rename the column"
    )
  given = {*columns, *RESERVED}
  lacking = [
    p.name
    for p in parameters
    if p.default is p.empty
    and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    and p.name not in given
  ]
  names = _by_name(signature)
  only_positional = any(p.kind is p.POSITIONAL_ONLY for p in parameters)
  starred = any(p.kind is p.VAR_POSITIONAL for p in parameters)
  every = any(p.kind is p.VAR_KEYWORD for p in parameters)
  if not (only_positional or lacking) and ("completions" in names or (every and not starred)):
    return False
  # The first two are prompts and completions under other names.
  first = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)][:2]
  orders = [p.name for p in first]
  swapped = orders[:1] == ["completions"] or orders[1:] == ["prompts"]
  swapped = swapped or any(n in columns and n not in RESERVED for n in orders)
  rest = [n for n in lacking if n not in {p.name for p in first}]
  if (len(first) == 2 or starred) and not swapped and not rest:
    return True
  missing = rest if len(first) == 2 and not swapped else lacking
  if missing:
    raise ValueError(
      f"reward '{name}' asks for {_listed(missing)}, but is called with prompts, completions and "
      f"columns; {_existing(columns)}"
    )
  raise ValueError(
    f"reward '{name}' cannot be called with prompts and completions: its arguments are "
    f"{signature}; write it as (prompts, completions, **columns)"
  )


def _signature(reward: Any) -> inspect.Signature:
  try:
    return inspect.signature(reward)
  except (TypeError, ValueError):  # some callables of C code have none
    return inspect.signature(lambda prompts, completions: None)


def _by_name(signature: inspect.Signature) -> set[str]:
  kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
  return {p.name for p in signature.parameters.values() if p.kind in kinds}


def _copied(values: list[Any]) -> list[Any]:
  try:
    return copy.deepcopy(values)
  except Exception:  # what cannot be copied cannot be kept from the function either
    return values


def _listed(names: list[str]) -> str:
  return ", ".join(f"'{name}'" for name in names)


def _existing(columns: Collection[str]) -> str:
  shown = sorted(str(c) for c in columns if c not in RESERVED)
  return f"the data have the columns {_listed(shown)}" if shown else "the data have no columns"
