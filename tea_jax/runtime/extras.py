"""Packages that the core does without: which extra brings them, in one sentence."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def extra(name: str, purpose: str) -> Iterator[None]:
  """Names the extra to install where an import inside the block finds no package.

  Example:
    >>> with extra("plots", "a figure"):
    ...   from matplotlib.figure import Figure

  Args:
    name: of the extra in pyproject.toml.
    purpose: what the package is needed for; begins the sentence.

  Raises:
    ModuleNotFoundError: if the package is not installed.
  """
  try:
    yield
  except ModuleNotFoundError as error:
    package = (error.name or "another package").partition(".")[0]
    raise ModuleNotFoundError(
      f'{purpose} needs {package}, which is not installed: pip install "tea-jax[{name}]".',
      name=error.name,
    ) from error
