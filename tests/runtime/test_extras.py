import pathlib
import subprocess
import sys

import pytest

from tea_jax.runtime.extras import extra


def test_missing_package_is_one_sentence_that_names_the_extra():
  sentence = r'^a figure needs no_such, which is not installed: pip install "tea-jax\[plots\]"\.$'
  with pytest.raises(ModuleNotFoundError, match=sentence), extra("plots", "a figure"):
    import no_such.module  # noqa: F401


def test_other_errors_pass_through():
  with pytest.raises(ZeroDivisionError), extra("plots", "a figure"):
    1 / 0  # noqa: B018


@pytest.mark.parametrize("package", ["tyro", "yaml", "rich"])
def test_script_without_the_train_extra_says_so_in_one_line(package):
  code = f"import runpy, sys; sys.modules[{package!r}] = None; sys.argv[1:] = ['--help']; "
  code += "runpy.run_module('experiments.train', run_name='__main__')"
  root = pathlib.Path(__file__).parents[2]
  done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
  assert done.returncode == 1
  assert done.stderr == (
    f"error: a script of experiments needs {package}, which is not installed: "
    'pip install "tea-jax[train]".\n'
  )
