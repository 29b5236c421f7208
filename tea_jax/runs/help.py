"""Short help of a tree of flags: first those that matter, then a group at a time."""

from __future__ import annotations

import dataclasses
import inspect
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

# Those of groups that decide most runs, shown after a script's own flags.
FIRST = (
  *("model.name", "data.prompts", "data.pairs", "reward.functions", "objective.name"),
  *(
    "advantage.name",
    "sampling.num_rollouts",
    "sampling.max_completion_length",
    "optimizer.learning_rate",
  ),
)


def help_page(config: Any, topic: str | None, *, prog: str, about: str = "") -> str:
  """What `--help` prints.

  Args:
    config: dataclass of the flags, with the defaults to show. A group that has groups of its own,
      as the run of a comparison has, is shown as if they were the config's.
    topic: a group such as "sampling"; None for the first flags and the list of groups.
    prog: of the usage line.
    about: text above.

  Raises:
    ValueError: for a group that does not exist.
  """
  own, groups = _tree(config)
  if "rules" in {name for name, *_ in own}:  # which say what `advantage` would
    groups.pop("advantage", None)
  if topic is None:
    nested = {flag[0]: flag for name, group in groups.items() for flag in _flags(group, f"{name}.")}
    shown = own + [nested[name] for name in FIRST if name in nested]
    lines = [about.strip(), "", f"usage: {prog} [--flag value ...]", "", "First:"]
    lines += [line for flag in shown for line in _lines(*flag)]
    lines += ["", f"More: {prog} --help GROUP, or --help all for every flag. Groups:"]
    lines += [f"  {name:12s} {_first_line(group)}" for name, group in groups.items()]
    return "\n".join(lines)
  if topic not in groups:
    raise ValueError(f"--help {topic}: there is no such group; groups: {', '.join(groups)}, all.")
  lines = [f"{topic}: {_first_line(groups[topic])}"]
  for flag in _flags(groups[topic], f"{topic}."):
    lines += _lines(*flag)
  return "\n".join(lines)


def _tree(config: Any) -> tuple[list[tuple[str, str, Any]], dict[str, Any]]:
  """(the config's own flags, name -> group)."""
  own, groups = [], {}
  for flag in _flags(config, ""):
    name, _, value = flag
    if not dataclasses.is_dataclass(value):
      own.append(flag)
    elif any(dataclasses.is_dataclass(getattr(value, f.name)) for f in dataclasses.fields(value)):
      inner, inner_groups = _tree(value)
      own += inner
      groups |= inner_groups
    else:
      groups[name] = value
  return own, groups


def _flags(group: Any, prefix: str) -> Iterator[tuple[str, str, Any]]:
  """`(name, what its docstring says, default)` of every field."""
  about: dict[str, str] = {}
  for each in reversed(type(group).__mro__):
    about |= entries(inspect.cleandoc(each.__doc__ or ""), "Attributes")
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


def _first_line(group: Any) -> str:
  return (inspect.getdoc(type(group)) or "").partition("\n")[0]


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
