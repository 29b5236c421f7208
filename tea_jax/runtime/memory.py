"""Memory of host and devices: what is left, what will not fit, giving back what was freed."""

from __future__ import annotations

import ctypes
import pathlib

import jax


def return_free_memory() -> None:
  """Returns freed memory to the system, where the C library can (glibc); nothing elsewhere.

  On the CPU, arrays are the C library's memory. It keeps freed blocks for later: up to 2 GB after
  updates of a model of 135M parameters, on top of which a checkpoint then makes its copies.
  """
  try:
    trim = ctypes.CDLL(None).malloc_trim
  except (OSError, AttributeError, TypeError):
    return
  trim(ctypes.c_size_t(0))


def available_host_bytes() -> int | None:
  """Memory that this process may still take, or None where the system does not tell.

  The smaller of the machine's available memory and what the control group leaves.
  """
  limits = []
  try:
    for line in pathlib.Path("/proc/meminfo").read_text().splitlines():
      if line.startswith("MemAvailable:"):
        limits.append(1024 * int(line.split()[1]))
  except OSError:
    pass
  for folder, limit, used in (
    ("/sys/fs/cgroup", "memory.max", "memory.current"),
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
  ):
    try:
      group = pathlib.Path(folder)
      stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
      # The page cache counts as used, but the kernel gives it back.
      cache = int(stat.get("file", stat.get("total_cache", 0)))
      taken = int((group / used).read_text()) - cache
      limits.append(int((group / limit).read_text()) - taken)
    except (OSError, ValueError):  # no such control group, or "max"
      continue
  return max(0, min(limits)) if limits else None


def available_device_bytes() -> int | None:
  """Memory left on the fullest local accelerator, or None on CPU and where it is not known."""
  left = []
  for device in jax.local_devices():
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "bytes_limit" in stats:
      left.append(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
  return min(left) if left else None


def device_limit_bytes() -> int | None:
  """All memory of the smallest local accelerator, or None on CPU and where it is not known."""
  limits = [
    stats["bytes_limit"]
    for device in jax.local_devices()
    if device.platform != "cpu" and "bytes_limit" in (stats := device.memory_stats() or {})
  ]
  return min(limits, default=None)


def check_memory(needed: int, available: int | None, what: str, where: str) -> None:
  """Refuses to start what cannot fit.

  Args:
    needed: bytes that `what` takes.
    available: bytes that are left, None if unknown (nothing is refused then).
    what: named in the error, such as `"the float32 weights"`.
    where: named in the error, such as `"host memory"`.

  Raises:
    MemoryError: naming both numbers and the remedies.
  """
  if available is not None and needed > available:
    raise MemoryError(
      f"{what} need {needed / 1e9:.2f} GB, but only {available / 1e9:.2f} GB of {where} are "
      "available; shard over more devices with a mesh, free memory, or take a smaller model."
    )
