"""Compilation: kept on disk, so that a second process starts without it, and timed."""

from __future__ import annotations

import functools
import hashlib
import os
import pathlib
import platform
import stat
import warnings

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


def enable_compilation_cache(path: str | os.PathLike | None = None) -> pathlib.Path | None:
  """Keeps compiled programs on disk; call it before the first compile.

  Entries are executable code, so the folder must be the user's own: readable and writable by its
  owner alone, no link, and below no folder that others may write (but for sticky ones like /tmp). A
  folder of its own a kind of processor lets machines share a home directory. The cache is a
  convenience: where none can be kept, one sentence says so, and everything compiles again.

  Args:
    path: root of the cache; by default `$TEA_JAX_CACHE`, else what `$JAX_COMPILATION_CACHE_DIR`
      says, else `tea_jax` in the user's cache folder.

  Returns:
    The folder in use, None for none.

  Raises:
    ValueError: if the folder is there, but is a link or another user's.
  """
  try:
    folder = _own_folder(path)
  except (OSError, RuntimeError) as error:
    warnings.warn(
      f"no compilation cache, so programs compile again in every process: {error}; set "
      "TEA_JAX_CACHE to a folder of yours",
      stacklevel=2,
    )
    return None
  jax.config.update("jax_compilation_cache_dir", str(folder))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
  return folder


def compile_seconds() -> float:
  """Seconds that JAX has spent lowering and compiling in this process since the first call.

  Programs read from the cache count with the time of reading. Traces nest, so they are left out.

  Example:
    >>> before = compile_seconds()
    >>> _ = jax.jit(lambda x: x + 1)(1.0)
    >>> compile_seconds() > before
    True
  """
  return sum(_compile_times().values())


@functools.cache
def _compile_times() -> dict[str, float]:
  """Stage of compilation -> seconds; JAX adds to it from now on."""
  stages = ("jaxpr_to_mlir_module", "backend_compile")
  seconds = {f"/jax/core/compile/{stage}_duration": 0.0 for stage in stages}

  def listen(event: str, duration_secs: float, **_: object) -> None:
    if event in seconds:
      seconds[event] += duration_secs

  jax.monitoring.register_event_duration_secs_listener(listen)
  return seconds


def _own_folder(path: str | os.PathLike | None) -> pathlib.Path:
  """The cache's folder, made if need be.

  Raises:
    OSError: if it cannot be made or written, or is not the user's own.
    RuntimeError: if the user has no home.
  """
  path = path or os.environ.get("TEA_JAX_CACHE")
  chosen = os.environ.get("JAX_COMPILATION_CACHE_DIR")
  if path is None and chosen:
    folder = pathlib.Path(chosen)
  else:
    if path is None:
      home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
      path = pathlib.Path(home) / "tea_jax"
    folder = pathlib.Path(path) / f"xla-{host_fingerprint()}"
  folder.mkdir(mode=0o700, parents=True, exist_ok=True)
  user, info = os.getuid(), folder.lstat()
  if not stat.S_ISDIR(info.st_mode) or info.st_uid != user:
    # No mishap: somebody else's programs lie where ours are expected.
    raise ValueError(f"{folder} is a link, or another user owns it; set TEA_JAX_CACHE to your own")
  folder.chmod(0o700)
  for parent in folder.resolve().parents:
    info = parent.stat()
    # A group of one's own, as many systems give each user, is no stranger.
    writers = 0o002 if info.st_uid == user else 0o022
    open_to_all = info.st_mode & writers and not info.st_mode & stat.S_ISVTX
    if open_to_all or info.st_uid not in (user, 0):
      raise OSError(f"others may replace {folder}: they may write {parent}")
  if not os.access(folder, os.W_OK):
    raise OSError(f"{folder} cannot be written")
  return folder
