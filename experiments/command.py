"""What scripts share: labels of arguments; mistakes become one line, a stop is a clean one."""

from __future__ import annotations

import argparse
import pathlib
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from tea_jax.runs.checkpoints import CheckpointError
from tea_jax.runs.config import RunConfig, to_dict
from tea_jax.runs.supervised import SupervisedConfig
from tea_jax.runtime import processes
from tea_jax.runtime.secrets import printable, public_text

MISTAKES = (
  ValueError,
  OSError,
  ImportError,
  MemoryError,
  FloatingPointError,
  CheckpointError,
)


def first_flags(
  arguments: Sequence[str], names: Sequence[str] = ("preset",)
) -> tuple[argparse.Namespace, list[str]]:
  """Flags that decide the defaults of the others (`names`, `--dry-run`), and the rest."""
  parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
  for name in names:
    parser.add_argument(f"--{name}")
  parser.add_argument("--dry-run", action="store_true")
  return parser.parse_known_args(arguments)


def labelled(words: Sequence[str]) -> dict[str, str]:
  """label -> what stands behind it, of words `label=name` or `name` (its last part is the label).

  A word that is a path is a name, whatever signs are in it.

  Raises:
    ValueError: if two words have the same label, or one that is no name of a folder.
  """
  found: dict[str, str] = {}
  for word in words:
    label, separator, name = word.partition("=")
    if not separator or pathlib.Path(word).exists():
      label, name = pathlib.Path(word).name, word
    if not label or label in (".", "..") or any(c in label for c in "/\\\0"):
      raise ValueError(
        f"the label {label!r} of {word!r} is no name of a folder; write label=name, without slashes"
      )
    if label in found:
      raise ValueError(f"two are called '{label}' ({found[label]} and {name}); write label=name")
    found[label] = name
  return found


def show_settings(config: RunConfig | SupervisedConfig, more: Mapping[str, str]) -> None:
  """Prints what differs from the defaults as a table; the whole config is in the run folder.

  Args:
    config: of the run or runs; its secrets are not shown.
    more: rows above, name -> value.
  """
  table = Table(box=None, header_style="bold", pad_edge=False)
  for name in ("setting", "value", "default"):
    table.add_column(name, overflow="fold", no_wrap=name == "setting")
  for name, value in more.items():
    table.add_row(name, value, "")
  defaults = _flat(to_dict(type(config)()))
  for name, value in _flat(to_dict(config)).items():
    if name not in more and value != defaults.get(name):
      default = defaults.get(name)
      table.add_row(name, printable(str(value)), "" if default is None else str(default))
  Console().print(table, highlight=False, markup=False)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """`{"a": {"b": 1}}` as `{"a.b": 1}`."""
  flat: dict[str, Any] = {}
  for name, value in values.items():
    if isinstance(value, Mapping):
      flat |= _flat(value, f"{prefix}{name}.")
    else:
      flat[f"{prefix}{name}"] = value
  return flat


def say(text: str) -> None:
  """Prints a line; of several processes only the first one does."""
  if processes.is_first():
    print(text, flush=True)


def run(work: Callable[[], object], *, several_processes: bool = False) -> int:
  """Exit code of `work`: 0, 2 after a mistake, 130 after Ctrl-C or a cluster's SIGTERM.

  Args:
    work: what the script does.
    several_processes: whether it can run in several; it is refused there if not.
  """
  # The notice that a cluster gives before it takes a machine acts like Ctrl-C.
  before = signal.signal(signal.SIGTERM, signal.default_int_handler)
  try:
    if not several_processes:
      processes.require_one("this command")
    work()
  except MISTAKES as error:
    text = printable(public_text(str(error))) or type(error).__name__
    print(f"error: {text}", file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print("stopped; the same command goes on from here", file=sys.stderr)
    return 130
  finally:
    signal.signal(signal.SIGTERM, before)
  return 0
