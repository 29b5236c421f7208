"""Worker process that checks texts against a pattern or a schema: JSON lines in, JSON lines out.

Patterns and schemas are the user's, the texts a model's, and some pairs of them take exponential
time; here each text has a few moments of the processor. It is run by path and never loads JAX.
A line `{"check": "search" | "fullmatch" | "last" | "schema", "rules": ..., "flags": int,
"texts": [...]}` is answered by `{"found": [...], "late": [rows that took too long]}`. What is found
is a truth value, by `last` the answer or null, by `schema` "valid", "parsed" or "invalid".
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

_MEMORY = 4 << 30  # bytes of address space
_SECONDS = 1.0  # for a text; half as many after each that took too long
_LEAST_SECONDS = 0.02
_FENCE = re.compile(r"```(?:json)?\s*\n(.*?)```", re.DOTALL | re.IGNORECASE)


def longest_seconds(num_texts: int) -> float:
  """What a task may take of the processor."""
  return 2 * _SECONDS + _LEAST_SECONDS * num_texts


def last_answer(pattern: re.Pattern[str], text: str) -> str | None:
  """The first group of the last match, stripped, or all of it where the pattern has no group."""
  found = [match[1 if pattern.groups else 0] for match in pattern.finditer(text)]
  return found[-1].strip() if found and found[-1] is not None else None


def make_validator(rules: Any, *, registry: Any) -> Any:
  """A validator that looks up nothing but `registry`, in linear time for unique items."""
  import jsonschema
  import jsonschema.validators

  def unique_items(validator: Any, wanted: Any, instance: Any, schema: Any) -> Any:
    if wanted and validator.is_type(instance, "array"):
      keys = [_item_key(item) for item in instance]
      if len(set(keys)) < len(keys):
        yield jsonschema.ValidationError("items are not unique")

  validator_class = jsonschema.validators.validator_for(rules)
  extended = jsonschema.validators.extend(validator_class, {"uniqueItems": unique_items})
  return extended(rules, registry=registry)


def _item_key(value: Any) -> Any:
  """Hashable; equal where JSON values are: 1 is 1.0, but not true."""
  if isinstance(value, list):
    return ("array", tuple(_item_key(item) for item in value))
  if isinstance(value, dict):
    return ("object", frozenset((key, _item_key(item)) for key, item in value.items()))
  return (isinstance(value, bool), value)


def _standing(validator: Any, text: str) -> str:
  """Whether the JSON in a text is valid, only parsed, or invalid."""
  fenced = _FENCE.search(text)
  try:
    value = json.loads(fenced.group(1) if fenced else text, parse_constant=_refuse)
  except (ValueError, RecursionError):
    return "invalid"
  try:
    return "valid" if validator.is_valid(value) else "parsed"
  except Exception:  # numbers beyond floats, deep nesting: the text's, and no match
    return "parsed"


def _refuse(name: str) -> Any:
  raise ValueError(f"{name} is not JSON")


def _checker(task: Mapping[str, Any]) -> tuple[Callable[[str], Any], Any]:
  """What checks one text, and what a text that takes too long is worth."""
  if task["check"] == "schema":
    import jsonschema_specifications

    validator = make_validator(task["rules"], registry=jsonschema_specifications.REGISTRY)
    return lambda text: _standing(validator, text), "parsed"
  pattern = re.compile(task["rules"], task.get("flags", 0))
  if task["check"] == "last":
    return lambda text: last_answer(pattern, text), None
  matches = pattern.fullmatch if task["check"] == "fullmatch" else pattern.search
  return lambda text: matches(text) is not None, False


class _Late(BaseException):
  """The time is over; nothing that checks a text catches it."""


def _stop(*_) -> None:
  raise _Late


def _checked(
  check: Callable[[str], Any], otherwise: Any, texts: Iterable[str]
) -> dict[str, list[Any]]:
  found, late = [], []
  for row, text in enumerate(texts):
    value = otherwise
    try:
      signal.setitimer(signal.ITIMER_PROF, max(_LEAST_SECONDS, _SECONDS / 2 ** min(len(late), 9)))
      try:
        value = check(text)
      finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    except (_Late, MemoryError):
      late.append(row)
    found.append(value)
  return {"found": found, "late": late}


def main() -> None:
  with contextlib.suppress(ImportError, ValueError, OSError):  # macOS has no such limit
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
  signal.signal(signal.SIGPROF, _stop)
  replies, sys.stdout = sys.stdout, sys.stderr  # nothing else may print into the protocol
  for line in sys.stdin:
    task = json.loads(line)
    print(json.dumps(_checked(*_checker(task), task["texts"])), file=replies, flush=True)


if __name__ == "__main__":
  main()
