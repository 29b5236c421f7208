"""What every script does around its work: mistakes become one line, a stop is a clean one."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

from tea_jax.training.checkpoints import CheckpointError

MISTAKES = (
  ValueError,
  OSError,
  ImportError,
  MemoryError,
  FloatingPointError,
  CheckpointError,
)


def run(work: Callable[[], object]) -> int:
  """Exit code of `work`: 0, 2 after a mistake, 130 after Ctrl-C or a cluster's SIGTERM."""
  # The notice that a cluster gives before it takes a machine acts like Ctrl-C.
  before = signal.signal(signal.SIGTERM, signal.default_int_handler)
  try:
    work()
  except MISTAKES as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print("stopped; the same command goes on from here", file=sys.stderr)
    return 130
  finally:
    signal.signal(signal.SIGTERM, before)
  return 0
