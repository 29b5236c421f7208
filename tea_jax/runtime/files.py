"""Writing files whole or not at all."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable
from typing import Any


def write_whole(path: str | os.PathLike[str], write: Callable[[pathlib.Path], Any]) -> None:
  """Calls `write` with a temporary path beside `path` and then puts it in place."""
  target = pathlib.Path(path)
  temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
  try:
    write(temporary)
    os.replace(temporary, target)
  finally:
    temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
  """Writes `text` in UTF-8, whole or not at all."""
  write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
