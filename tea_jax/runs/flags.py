"""Flags of a config tree, with `--advantage.*`: any argument of any rule's factory.

tyro makes the flags of every group from its dataclass. A rule has no dataclass: its arguments stand
in its factory. So `--advantage.name tea --advantage.budget 256` becomes the one flag
`--advantage tea budget=256` before tyro reads the rest.
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import re
import typing
from collections.abc import Sequence
from typing import Any, TypeVar, cast

from tea_jax.advantages.registry import (
  AdvantageSpec,
  advantage_factory,
  available_advantages,
  rule_words,
)
from tea_jax.runs.checks import named_by
from tea_jax.runs.help import entries, help_page
from tea_jax.runtime.extras import extra
from tea_jax.runtime.signatures import named_parameters

with extra("train", "flags of a run"):
  import tyro

T = TypeVar("T")

RULE_FLAG = tyro.constructors.PrimitiveConstructorSpec(
  nargs="*",
  metavar="NAME [ARGUMENT=VALUE ...]",
  instance_from_str=lambda words: (
    AdvantageSpec.parse(words[0]) if len(words) == 1 else AdvantageSpec.from_words(words)
  ),
  is_instance=lambda value: isinstance(value, AdvantageSpec),
  str_from_instance=AdvantageSpec.to_words,
)
"""How tyro reads a field of `AdvantageSpec`."""


def parse(
  kind: type[T],
  arguments: Sequence[str],
  *,
  default: T | None = None,
  description: str | None = None,
  prog: str | None = None,
  rule: AdvantageSpec | None = None,
) -> T:
  """`parse_tree`, with the arguments of advantage rules as flags.

  Args:
    kind: dataclass of the flags; one of its fields, at any depth, is the run's `advantage`.
    arguments, default, description, prog: see `parse_tree`.
    rule: that `--advantage.budget 256` without a name is about; `default.advantage` by default.

  Raises:
    ValueError: for a rule or an argument of it that does not exist, or a value of another type.
    SystemExit: for other flags, as tyro does.
  """
  rule = rule or cast(AdvantageSpec, getattr(default, "advantage", AdvantageSpec()))
  words, rest, named = _take_rule(arguments, rule)
  topic = _help_topic(rest)
  if topic == "advantage" or (topic == "" and named):
    print(rule_help(words[0]))
    raise SystemExit(0)
  if topic == "all":
    description = f"{description or ''}\n\n{rule_help(words[0])}"
  elif named:
    AdvantageSpec.from_words(words)
    rest = ["--advantage", *words, *rest]
  return parse_tree(kind, rest, default=default, description=description, prog=prog)


def parse_tree(
  kind: type[T],
  arguments: Sequence[str],
  *,
  default: T | None = None,
  description: str | None = None,
  prog: str | None = None,
) -> T:
  """`tyro.cli` with a short help, and errors that name flags instead of fields.

  Args:
    kind: dataclass of the flags, in groups.
    arguments: the command line.
    default, description, prog: see `tyro.cli`. `--help` shows the first flags, `--help GROUP` those
      of a group, `--help all` what tyro says of all of them.

  Raises:
    ValueError: for values that a config refuses.
    SystemExit: for other flags, as tyro does.
  """
  rest = list(arguments)
  topic = _help_topic(rest)
  if topic == "all":
    del rest[rest.index("all")]
  elif topic is not None:
    start = kind() if default is None else default
    print(help_page(start, topic or None, prog=prog or "", about=description or ""))
    raise SystemExit(0)
  options: dict[str, Any] = {} if default is None else {"default": default}
  with named_by(lambda text: as_flags(text, kind)):
    return tyro.cli(kind, args=rest, description=description, prog=prog, **options)


def _help_topic(arguments: Sequence[str]) -> str | None:
  """The word after `--help`; "" for none; None where no help is asked for."""
  asked = next((i for i, word in enumerate(arguments) if word in ("-h", "--help")), None)
  return None if asked is None else next(iter(arguments[asked + 1 :]), "")


def as_flags(text: str, kind: type) -> str:
  """What a config's error says, with its fields called as the flags that set them.

  `temperature=0.0` and `sampling.temperature=0.0` become `--sampling.temperature=0.0`.

  Args:
    text: of the error.
    kind: dataclass of the flags.
  """
  hints = typing.get_type_hints(kind)
  groups = {name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)}
  places: dict[str, list[str]] = {}
  for group, hint in groups.items():
    for field in dataclasses.fields(hint):
      places.setdefault(field.name, []).append(group)

  def flag(match: re.Match[str]) -> str:
    group, name = match["group"], match["name"]
    known = places.get(name, [])
    if group is None and name in hints and name not in groups and not known:
      return f"--{name.replace('_', '-')}"
    if (group is None and len(known) != 1) or (group is not None and group not in known):
      return match[0]
    return f"--{group or known[0]}.{name.replace('_', '-')}"

  dotted = r"(?:(?P<group>[a-z]\w*)\.)?(?P<name>[a-z]\w*)"
  # A bare word may be any word, unless it has an underscore or a value follows.
  return re.sub(
    rf"(?<![\w.'\"/-]){dotted}(?![\w./-])",
    lambda m: flag(m) if m["group"] or "_" in m["name"] or m.string[m.end() :][:1] == "=" else m[0],
    text,
  )


def rule_help(name: str) -> str:
  """What the rules are called, and the flags of one of them from its signature and docstring."""
  lines = ["Advantage rules (--advantage.name; your own as file.py:factory or module:factory):"]
  for each in available_advantages():
    lines.append(f"  {each}: {_first_line(each)}")
  lines.append(f"\nFlags of {name}:")
  factory = advantage_factory(name)
  about = entries(inspect.getdoc(factory) or "", "Args")
  for argument, parameter in named_parameters(factory).items():
    flag = f"--advantage.{argument.replace('_', '-')}"
    default = "" if parameter.default is parameter.empty else f" (default: {parameter.default})"
    lines.append(f"  {flag}  {about.get(argument, '')}{default}")
  lines.append(
    "  --advantage.scale  none, group or batch: advantages get the size of the centred "
    "rewards, so that a coefficient means about the same under every rule (default: none)"
  )
  return "\n".join(lines)


def _take_rule(
  arguments: Sequence[str], default: AdvantageSpec
) -> tuple[list[str], list[str], bool]:
  """`(words of the rule, the other arguments, whether any flag was about the rule)`."""
  given: dict[str, str] = {}
  rest: list[str] = []
  waiting = list(arguments)
  while waiting:
    word = waiting.pop(0)
    flag = re.fullmatch(r"--advantage\.([\w-]+)(?:=(.*))?", word, re.DOTALL)
    if flag is None:
      rest.append(word)
      continue
    name, value = flag.groups()
    if value is None:
      values = list(itertools.takewhile(lambda each: not each.startswith("--"), waiting))
      del waiting[: len(values)]
      # A flag alone switches on, as tyro's flags do.
      value = ",".join(values) if values else "true"
    given[name.replace("-", "_")] = value
  named = bool(given)
  # The name may bring arguments, as in `tea:budget=256`; flags of their own come later.
  name, *words = rule_words(given.pop("name", default.name))
  # Another rule starts from its own defaults.
  kept = [*(default.to_words()[1:] if name == default.name else ()), *words]
  kept = [word for word in kept if word.partition("=")[0] not in given]
  return [name, *kept, *(f"{key}={value}" for key, value in given.items())], rest, named


def _first_line(name: str) -> str:
  return (inspect.getdoc(advantage_factory(name)) or "").partition("\n")[0]
