"""The user's own Python: functions by `module:name` or `file.py:name`, and their failures."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import os
import pathlib
import sys
import sysconfig
import traceback
import types
from collections.abc import Iterator
from typing import Any

_PACKAGE = str(pathlib.Path(__file__).resolve().parents[1])
_LIBRARIES = tuple({sysconfig.get_paths()[kind] for kind in ("stdlib", "purelib", "platlib")})
# What was run already, by path and content: a file named twice runs once, a changed one again.
_loaded: dict[str, tuple[bytes, types.ModuleType]] = {}


def load_object(path: str) -> Any:
  """Imports `module:name` or `file.py:name`; the module may lie in the working directory.

  A file is a module like any other: it stands in `sys.modules`, may import its neighbours, and runs
  once however often it is named.

  Raises:
    ValueError: no such module, file or name, code that fails (with file and line), or an object
      that is not callable.
  """
  module_name, _, attribute = path.rpartition(":")
  if not module_name or not attribute:
    raise ValueError(f"'{path}' is not of the form module:function or file.py:function")
  with user_errors(f"cannot import '{module_name}' of '{path}'"):
    if module_name.endswith(".py"):
      module = _import_file(module_name)
    else:
      module = _import_with_working_directory(module_name)
  if not hasattr(module, attribute):
    raise ValueError(f"'{module_name}' has no '{attribute}' (asked for by '{path}')")
  value = getattr(module, attribute)
  if not callable(value):
    raise ValueError(f"'{path}' is a {type(value).__name__}, not a function")
  return value


@contextlib.contextmanager
def user_errors(what: str) -> Iterator[None]:
  """Turns whatever the user's code raises, `sys.exit` included, into a ValueError of one sentence.

  Args:
    what: begins the sentence.
  """
  try:
    yield
  except (Exception, SystemExit) as error:
    raise ValueError(f"{what}: {explain(error)}") from error


def explain(error: BaseException, *, kind: bool = False) -> str:
  """Text of an error, and the file and line of the user's code that it comes from.

  Args:
    error: caught.
    kind: always name its type; without it, a failed import or a missing file speaks for itself.
  """
  text = " ".join(str(error).split())
  if isinstance(error, SyntaxError) and error.filename:
    return f"{type(error).__name__}: {error.msg} ({error.filename}, line {error.lineno})"
  frames = [
    frame
    for frame in traceback.extract_tb(error.__traceback__)
    if not frame.filename.startswith((_PACKAGE, "<", *_LIBRARIES))
  ]
  place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
  if isinstance(error, ImportError | FileNotFoundError) and text and not kind:
    return f"{text}{place}"
  return f"{type(error).__name__}: {text}{place}" if text else f"{type(error).__name__}{place}"


def _import_file(path: str) -> types.ModuleType:
  file = pathlib.Path(path).resolve()
  if not file.is_file():
    raise FileNotFoundError(f"no file '{path}'")
  digest = hashlib.sha256(file.read_bytes()).digest()
  known = _loaded.get(str(file))
  if known is not None and known[0] == digest:
    return known[1]
  name = _module_name(file)
  spec = importlib.util.spec_from_file_location(name, file)
  if spec is None or spec.loader is None:
    raise ImportError(f"'{path}' is not a Python file")
  # Its neighbours may be imported, by it and by the processes that it starts.
  if str(file.parent) not in sys.path:
    sys.path.append(str(file.parent))
  module = importlib.util.module_from_spec(spec)
  # Compiled here: the byte code that Python keeps is checked by time and size only, so that a
  # change within a second would run the old code.
  code = compile(file.read_bytes(), str(file), "exec", dont_inherit=True)
  before = sys.modules.get(name)
  sys.modules[name] = module  # dataclasses, pickle and process pools look it up there
  try:
    exec(code, module.__dict__)
  except BaseException:
    sys.modules.pop(name)
    if before is not None:
      sys.modules[name] = before
    raise
  _loaded[str(file)] = (digest, module)
  return module


def _module_name(file: pathlib.Path) -> str:
  """The file's stem, unless another module has that name."""
  stem = file.stem
  try:
    found = sys.modules.get(stem) or importlib.util.find_spec(stem)
  except (ImportError, ValueError):
    found = None
  spec = getattr(found, "__spec__", found)
  origin = getattr(spec, "origin", None)
  if found is None or (origin and pathlib.Path(origin).resolve() == file):
    return stem
  return f"{stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"


def _import_with_working_directory(name: str) -> types.ModuleType:
  # Console entry points do not have the working directory on the path; users expect it.
  here = os.getcwd()
  added = here not in sys.path and "" not in sys.path
  if added:
    sys.path.insert(0, here)
  try:
    return importlib.import_module(name)
  finally:
    if added:
      sys.path.remove(here)
