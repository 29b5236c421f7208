"""Short help of a config tree: first the flags that matter, then a group at a time."""

from __future__ import annotations

import dataclasses
import inspect
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

# The ten flags that decide most runs.
FIRST = (
  *("run_folder", "steps", "model.name", "data.prompts", "data.chat", "reward.functions"),
  *("advantage.name", "sampling.num_rollouts", "sampling.max_completion_length"),
  "optimizer.learning_rate",
)


def help_page(config: Any, topic: str | None, *, prog: str, about: str = "") -> str:
  """What `--help` prints.

  Args:
    config: dataclass of the flags, with the defaults to show.
    topic: a group such as "sampling"; None for the flags of `FIRST` and the list of groups.
    prog: of the usage line.
    about: text above.

  Raises:
    ValueError: for a group that does not exist.
  """
  groups = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
  groups = {name: g for name, g in groups.items() if isinstance(_documented(g), str)}
  if topic is None:
    shown = [
      (name, *flag) for name in FIRST for flag in _flags(*_holder(config, name)) if flag[0] == name
    ]
    lines = [about.strip(), "", f"usage: {prog} [--flag value ...]", "", "First:"]
    lines += [line for _, name, text, value in shown for line in _lines(name, text, value)]
    lines += ["", f"More: {prog} --help GROUP, or --help all for every flag. Groups:"]
    lines += [f"  {name:12s} {_first_line(group)}" for name, group in groups.items()]
    return "\n".join(lines)
  if topic not in groups:
    raise ValueError(f"--help {topic}: there is no such group; groups: {', '.join(groups)}, all.")
  lines = [f"{topic}: {_first_line(groups[topic])}"]
  for flag in _flags(groups[topic], f"{topic}."):
    lines += _lines(*flag)
  return "\n".join(lines)


def _holder(config: Any, name: str) -> tuple[Any, str]:
  group, dot, _ = name.partition(".")
  return (getattr(config, group), f"{group}.") if dot else (config, "")


def _flags(group: Any, prefix: str) -> Iterator[tuple[str, str, Any]]:
  """`(name, what its docstring says, default)` of every field."""
  about = entries(inspect.getdoc(type(group)) or "", "Attributes")
  for field in dataclasses.fields(group):
    yield prefix + field.name, about.get(field.name, ""), getattr(group, field.name)


def _lines(name: str, text: str, value: Any) -> list[str]:
  width = max(40, min(100, shutil.get_terminal_size((80, 24)).columns))
  shown = " ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
  group, dot, leaf = name.replace("_", "-").rpartition(".")
  flag = f"  --{group}{dot}{leaf}"
  if isinstance(value, bool):
    flag += f", --{group}{dot}no-{leaf}"
  said = f"{text} (default: {shown})"
  return [flag, *textwrap.wrap(said, width, initial_indent=" " * 6, subsequent_indent=" " * 6)]


def _documented(group: Any) -> str | None:
  return inspect.getdoc(type(group)) if dataclasses.is_dataclass(group) else None


def _first_line(group: Any) -> str:
  return (_documented(group) or "").partition("\n")[0]


def entries(doc: str, section: str) -> dict[str, str]:
  """name -> what the section `Args:` or `Attributes:` of a docstring says of it, on one line."""
  _, _, text = f"\n{doc}".partition(f"\n{section}:\n")
  found: dict[str, str] = {}
  names: Sequence[str] = ()
  for line in text.split("\n"):
    if line and not line.startswith("  "):
      break
    head, colon, rest = line.strip().partition(": ")
    new = line.startswith("  ") and not line.startswith("   ") and colon
    if new and all(word.isidentifier() for word in head.split(", ")):
      names = head.split(", ")
      found |= dict.fromkeys(names, rest)
    else:
      found |= {name: f"{found[name]} {line.strip()}" for name in names}
  return {name: text.strip() for name, text in found.items()}
