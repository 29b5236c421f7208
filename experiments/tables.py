"""Writes the tables of results into the pages: `python -m experiments.tables`.

A table stands in a page between `<!-- begin generated: name -->` and `<!-- end -->` and is made of
what is stored under `experiments/results`.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
import sys

import tyro

from experiments.result_tables import TABLES
from tea_jax.runtime.files import write_text

ROOT = pathlib.Path(__file__).parents[1]
_BLOCK = re.compile(r"(<!-- begin generated: (\S+) -->\n).*?(<!-- end -->)", re.S)


@dataclasses.dataclass(frozen=True)
class Flags:
  """What to do with the pages.

  Attributes:
    check: write nothing, and fail if a page would change.
  """

  check: bool = False


def pages(root: pathlib.Path = ROOT) -> list[pathlib.Path]:
  """The README and the page of every room."""
  rooms = [*root.glob("tea_jax/**/README.md"), *root.glob("experiments/**/README.md")]
  return [root / "README.md", *sorted(rooms)]


def names_in(text: str) -> list[str]:
  """Names of the tables in a page."""
  return [match[2] for match in _BLOCK.finditer(text)]


def regenerated(text: str) -> str:
  """The page with every table made anew.

  Raises:
    ValueError: for a table that nothing makes.
  """
  unknown = sorted(set(names_in(text)) - set(TABLES))
  if unknown:
    raise ValueError(f"no table is called {unknown[0]!r}; known: {', '.join(TABLES)}")
  return _BLOCK.sub(lambda match: f"{match[1]}{TABLES[match[2]]()}\n{match[3]}", text)


def main(arguments: list[str] | None = None) -> int:
  check = tyro.cli(Flags, args=arguments, description=__doc__).check
  changed = [page for page in pages() if regenerated(page.read_text()) != page.read_text()]
  for page in changed:
    print(f"{page.relative_to(ROOT)}: {'out of date' if check else 'written'}")
    if not check:
      write_text(page, regenerated(page.read_text()))
  return int(check and bool(changed))


if __name__ == "__main__":
  sys.exit(main())
