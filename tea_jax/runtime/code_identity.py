"""A digest of what a function does: of its code, defaults and settings, where they can be read."""

from __future__ import annotations

import dis
import functools
import hashlib
import inspect
import re
import types
from collections.abc import Iterator, Mapping
from typing import Any

_PACKAGE = __name__.partition(".")[0]
_PLAIN = (str, bytes, int, float, complex, bool, type(None))
_DEPTH = 6
_URL = re.compile(r"https?://[^'\"]*")


def code_identity(value: Any) -> str:
  """16 hexadecimal digits that change with a callable's code, and with the settings it holds.

  Of the user's functions and classes: byte code, constants, defaults, values that they close over,
  and the functions of the same module that they call. Of this package's objects: class and public
  settings, since a version may change code without changing what it computes. What a function
  changes itself (a counter) and what is no plain value (arrays, clients) does not count. A class
  may name settings that do not count in `not_identity`.
  """
  digest = hashlib.blake2b(digest_size=8)
  for part in _parts(value, set(), 0):
    digest.update(part.encode("utf-8", "surrogatepass") + b"\x00")
  return digest.hexdigest()


def _parts(value: Any, seen: set[int], depth: int) -> Iterator[str]:
  if isinstance(value, _PLAIN):
    yield f"{type(value).__name__} {value!r}"
    return
  if id(value) in seen or depth > _DEPTH:
    return
  seen.add(id(value))
  if isinstance(value, tuple | list | frozenset | set):
    items = sorted(value, key=repr) if isinstance(value, frozenset | set) else value
    for item in items:
      yield from _parts(item, seen, depth + 1)
  elif isinstance(value, Mapping):
    for key, item in value.items():
      yield _URL.sub("url", repr(key))  # where a server is does not count
      yield from _parts(item, seen, depth + 1)
  elif hasattr(value, "__wrapped__") and not isinstance(value, types.FunctionType):
    yield from _parts(value.__wrapped__, seen, depth + 1)  # a jitted function
  elif isinstance(value, functools.partial):
    yield from _parts((value.func, value.args, value.keywords), seen, depth + 1)
  elif isinstance(value, types.MethodType):
    yield from _parts((value.__func__, value.__self__), seen, depth + 1)
  elif isinstance(value, types.FunctionType):
    yield from _function(value, seen, depth)
  elif isinstance(value, types.CodeType):
    yield from _code(value, seen, depth)
  elif isinstance(value, type):
    yield f"{value.__module__}.{value.__qualname__}"
    if not _is_ours(value) and inspect.getmodule(value) is not None:
      for name, member in sorted(vars(value).items()):
        if isinstance(member, types.FunctionType):
          yield name
          yield from _parts(member, seen, depth + 1)
  elif hasattr(value, "pattern") and hasattr(value, "flags"):  # a compiled regular expression
    yield f"{value.pattern!r} {value.flags}"
  elif hasattr(value, "__dict__"):
    yield from _parts(type(value), seen, depth + 1)
    changing = _stored_attributes(type(value)) | set(getattr(value, "not_identity", ()))
    for name, member in sorted(vars(value).items()):
      private = _is_ours(type(value)) and name.startswith("_")
      if name not in changing and not private and _is_setting(member):
        yield name
        yield from _parts(member, seen, depth + 1)


def _function(function: types.FunctionType, seen: set[int], depth: int) -> Iterator[str]:
  yield f"{function.__module__}.{function.__qualname__}" if _is_ours(function) else "function"
  settings = (function.__defaults__, function.__kwdefaults__)
  yield from _parts(settings, seen, depth + 1)
  code = function.__code__
  changing = {i.argval for i in dis.get_instructions(code) if i.opname == "STORE_DEREF"}
  for name, cell in zip(code.co_freevars, function.__closure__ or ()):
    try:
      member = cell.cell_contents
    except ValueError:  # not bound yet
      continue
    if name not in changing and _is_constant(member):
      yield name
      yield from _parts(member, seen, depth + 1)
  if _is_ours(function):
    return
  yield from _code(code, seen, depth)
  for name in _names(code):
    member = function.__globals__.get(name)
    same = getattr(member, "__module__", None) == function.__module__
    if isinstance(member, types.FunctionType | type) and same:
      yield name
      yield from _parts(member, seen, depth + 1)
    elif isinstance(member, _PLAIN) and name.isupper():
      yield f"{name} {member!r}"


def _code(code: types.CodeType, seen: set[int], depth: int) -> Iterator[str]:
  yield code.co_code.hex()
  yield repr((code.co_names, code.co_varnames[: code.co_argcount]))
  for constant in code.co_consts:
    yield from _parts(constant, seen, depth + 1)


def _names(code: types.CodeType) -> list[str]:
  inner = [c for c in code.co_consts if isinstance(c, types.CodeType)]
  return sorted({*code.co_names, *(name for c in inner for name in _names(c))})


def _is_ours(value: Any) -> bool:
  return str(getattr(value, "__module__", "")).partition(".")[0] == _PACKAGE


def _is_constant(value: Any) -> bool:
  """Plain, or a function: what is no list or dict, which a function may change."""
  if isinstance(value, tuple):
    return all(map(_is_constant, value))
  regular = hasattr(value, "pattern")
  return regular or isinstance(value, (*_PLAIN, types.FunctionType, functools.partial, type))


def _is_setting(value: Any) -> bool:
  if isinstance(value, tuple | list):
    return all(map(_is_setting, value))
  if isinstance(value, Mapping):
    return all(map(_is_setting, value.values()))
  return _is_constant(value) or callable(value)


def _stored_attributes(kind: type) -> set[str]:
  """Attributes that methods other than the constructors store."""
  names: set[str] = set()
  for cls in kind.__mro__:
    for name, member in vars(cls).items():
      if isinstance(member, types.FunctionType) and name not in ("__init__", "__post_init__"):
        found = dis.get_instructions(member.__code__)
        names |= {i.argval for i in found if i.opname == "STORE_ATTR"}
  return names
