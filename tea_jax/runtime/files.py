"""Files: written whole or not at all, read with errors that name them, links kept inside."""

from __future__ import annotations

import hashlib
import json
import math
import numbers
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

# What is read of a folder of a model or adapter.
_READ = (".json", ".safetensors", ".jinja", ".model", ".txt", ".spm")
_TEMPLATES = "additional_chat_templates"


def write_whole(path: str | os.PathLike[str], write: Callable[[pathlib.Path], Any]) -> None:
  """Calls `write` with a temporary path beside `path` and then puts it in place."""
  target = pathlib.Path(path)
  temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
  temporary.unlink(missing_ok=True)  # never written through a link that lies there
  try:
    write(temporary)
    os.replace(temporary, target)
  finally:
    temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
  """Writes `text` in UTF-8, whole or not at all."""
  write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def file_checksums(folder: str | os.PathLike[str]) -> dict[str, str]:
  """Name -> digest of every file of a folder, read a piece at a time."""
  found = {}
  for path in sorted(pathlib.Path(folder).iterdir()):
    if path.is_file():
      with path.open("rb") as file:
        found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
  return found


def plain(value: Any, *, infinity: str | None = None) -> Any:
  """A value as JSON can hold it: lists, objects, numbers of Python; NaN and -inf become null.

  Args:
    value: nested lists, tuples and mappings of numbers, texts and None.
    infinity: what stands for +inf; null by default.
  """
  if isinstance(value, (bool, str)) or value is None:
    return value
  if isinstance(value, numbers.Integral):
    return int(value)
  if isinstance(value, (list, tuple)):
    return [plain(v, infinity=infinity) for v in value]
  if isinstance(value, Mapping):
    return {str(k): plain(v, infinity=infinity) for k, v in value.items()}
  number = float(value)
  return infinity if number == math.inf else number if math.isfinite(number) else None


def check_links(folder: str | os.PathLike[str], *, everything: bool = False) -> None:
  """Refuses a folder of a model or adapter whose files are links out of it.

  Such a folder may come from anybody, and what is read of it ends in prompts and messages. Links
  between its own files are followed, and so are those of the hub's cache: from
  `models--owner--name/snapshots/REVISION` to `models--owner--name/blobs`.

  Args:
    folder: of the model or adapter.
    everything: look at all of it, not only at what is read of a model.

  Raises:
    ValueError: naming the link and where it leads.
  """
  root = pathlib.Path(os.path.realpath(folder))
  inside = [root, root.parents[1] / "blobs"] if root.parent.name == "snapshots" else [root]
  entries = root.rglob("*") if everything else (*root.glob("*"), *root.glob(f"{_TEMPLATES}/*"))
  for entry in entries:
    if not everything and entry.suffix not in _READ and entry.name != _TEMPLATES:
      continue
    target = pathlib.Path(os.path.realpath(entry))
    if not any(target.is_relative_to(place) for place in inside):
      raise ValueError(
        f"{entry} is a link to {target}, outside of its folder; put the file itself there "
        "(cp -L) if you trust it"
      )


def read_json(path: str | os.PathLike[str], *, kind: type | tuple[type, ...] = dict) -> Any:
  """The value of a JSON file.

  Args:
    path: of the file, in UTF-8 (a byte order mark is skipped).
    kind: what the value must be.

  Raises:
    ValueError: naming the file, if it is no such JSON.
    OSError: if it cannot be read.
  """
  try:
    value = json.loads(pathlib.Path(path).read_bytes().decode("utf-8-sig"))
  except UnicodeDecodeError as error:
    raise ValueError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from error
  except RecursionError as error:
    raise ValueError(f"{path} is not usable JSON: it is nested too deeply") from error
  except ValueError as error:
    raise ValueError(f"{path} is not JSON: {error}") from error
  if not isinstance(value, kind):
    kinds = kind if isinstance(kind, tuple) else (kind,)
    names = " or ".join({dict: "an object", list: "a list"}.get(k, k.__name__) for k in kinds)
    raise ValueError(f"{path} holds {type(value).__name__}, but must hold {names}")
  return value
