"""Memory of the host: giving back what the C library keeps of freed arrays."""

from __future__ import annotations

import ctypes


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
