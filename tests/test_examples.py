"""Examples in docstrings give what they show; every public name has one there or on a page."""

import doctest
import importlib
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tea_jax.scaling
from experiments.tables import pages

ROOT = pathlib.Path(tea_jax.__file__).parent
MODULES = [
  "tea_jax." + ".".join(path.relative_to(ROOT).with_suffix("").parts)
  for path in sorted(ROOT.rglob("*.py"))
  if ">>> " in path.read_text()
]
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_give_what_they_show(name):
  module = importlib.import_module(name.removesuffix(".__init__"))
  common = {"jax": jax, "jnp": jnp, "np": np, "tea_jax": tea_jax}
  finder = doctest.DocTestFinder(exclude_empty=True)
  tests = finder.find(module, globs={**common, **vars(module)})
  tests = [test for test in tests if test.examples]
  assert tests
  runner = doctest.DocTestRunner(optionflags=OPTIONS)
  said: list[str] = []
  for test in tests:
    runner.run(test, out=said.append)
  assert not runner.summarize(verbose=False).failed, "".join(said)


def test_every_public_name_has_an_example():
  text = "".join(page.read_text() for page in pages())
  code = "".join(re.findall(r"```python\n(.*?)```", text, re.S))
  without = [
    name
    for name in tea_jax.__all__
    if ">>> " not in (getattr(tea_jax, name).__doc__ or "") and not re.search(rf"\b{name}\b", code)
  ]
  assert not without
