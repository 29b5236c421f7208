"""Persistent compilation cache: a second process starts without compiling again."""

from __future__ import annotations

import hashlib
import os
import pathlib
import platform

import jax


def host_fingerprint() -> str:
  """Short hash of the processor's features: code compiled for others may not run here."""
  features = platform.machine() + platform.processor()
  try:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
  except OSError:
    lines = []
  for line in lines:
    if line.startswith(("flags", "Features", "model name")):
      features += line
      if not line.startswith("model name"):
        break
  return hashlib.sha256(features.encode()).hexdigest()[:12]


def enable_compilation_cache(path: str | os.PathLike | None = None) -> pathlib.Path:
  """Keeps compiled programs on disk; call it before the first compile.

  Entries are executable code, so the folder is made readable by its owner alone. A folder of its
  own a kind of processor lets machines share a home directory.

  Args:
    path: root of the cache; by default `$TEA_JAX_CACHE`, else `tea_jax` in the user's cache folder.

  Returns:
    The folder in use.
  """
  if path is None:
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    path = os.environ.get("TEA_JAX_CACHE") or pathlib.Path(home) / "tea_jax"
  folder = pathlib.Path(path) / f"xla-{host_fingerprint()}"
  folder.mkdir(mode=0o700, parents=True, exist_ok=True)
  jax.config.update("jax_compilation_cache_dir", str(folder))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
  return folder
