"""One script a result: parse flags, call the library, write. Run from a checkout."""

import importlib

from tea_jax.runtime.extras import extra

# Before a script's own imports, so that a missing package is one line and no traceback.
try:
  with extra("train", "a script of experiments"):
    for package in ("tyro", "yaml", "rich", "pyarrow"):
      importlib.import_module(package)
except ModuleNotFoundError as error:
  raise SystemExit(f"error: {error}") from None
