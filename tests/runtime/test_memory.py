"""Freed memory goes back to the system."""

import ctypes
import pathlib
import platform

import numpy as np
import pytest

from tea_jax.runtime import memory


def _resident() -> int:
  return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps it")
def test_freed_blocks_are_returned():
  # Blocks below glibc's threshold for maps of their own; the last keeps the heap from shrinking.
  blocks = [np.ones(8000) for _ in range(4000)]
  pin = np.ones(8000)
  del blocks
  before = _resident()
  memory.return_free_memory()
  assert before - _resident() > 100e6
  assert pin[0] == 1


def test_without_a_trimming_library_nothing_happens(monkeypatch):
  monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
  memory.return_free_memory()
