"""A program beside this process that answers JSON lines, each under a deadline."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
import threading
import time
from typing import Any

TIMED_OUT = {"timeout": True}
_KEPT_MESSAGES = 1 << 13  # bytes of what a worker printed last


class WorkerProcess:
  """One copy of a program that answers each JSON line with one JSON line."""

  def __init__(self, program: str, *, longest_answer: int = 1 << 20):
    """Args:
    program: path of a Python file.
    longest_answer: bytes; a longer answer counts as none.
    """
    self._program = program
    self._longest_answer = longest_answer
    self._process: subprocess.Popen[bytes] | None = None
    self._printed = b""
    self._reader: threading.Thread | None = None
    self.started = False

  def ask(self, task: dict[str, Any], timeout: float) -> dict[str, Any]:
    """The answer; `TIMED_OUT` after the time-out or a nonsensical answer, and a new process next.

    Raises:
      RuntimeError: the worker died while starting, with what it printed.
    """
    process = self._process or self._start()
    assert process.stdin is not None
    try:
      process.stdin.write(json.dumps(task).encode() + b"\n")
      process.stdin.flush()
      line = self._read_line(time.monotonic() + timeout)
    except BrokenPipeError:
      line = b""
    if line is None:
      self.stop()
      return dict(TIMED_OUT)
    if not line:
      self._died()
      return dict(TIMED_OUT)
    self.started = True
    try:
      answer = json.loads(line)
    except (ValueError, RecursionError):
      answer = None
    if not isinstance(answer, dict):
      self.stop()  # it answers no longer as agreed
      return dict(TIMED_OUT)
    return answer

  def stop(self) -> None:
    """Kills the process; the next task starts another."""
    process, self._process, self.started = self._process, None, False
    if process is not None:
      process.kill()
      process.wait()
      for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
          with contextlib.suppress(OSError):  # unsent bytes of a killed worker
            stream.close()

  def _start(self) -> subprocess.Popen[bytes]:
    self._process = subprocess.Popen(
      [sys.executable, "-P", self._program],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      start_new_session=True,
    )
    self._printed = b""
    self._reader = threading.Thread(target=self._drain, args=(self._process.stderr,), daemon=True)
    self._reader.start()
    return self._process

  def _drain(self, stream: Any) -> None:
    """Reads what the worker prints, so that it never waits for room in the pipe."""
    with contextlib.suppress(OSError, ValueError):  # closed by `stop`
      while chunk := os.read(stream.fileno(), 65536):
        self._printed = (self._printed + chunk)[-_KEPT_MESSAGES:]

  def _died(self) -> None:
    """A worker that dies at its start cannot run at all; one that dies later is replaced."""
    was_started = self.started
    if self._reader is not None and not was_started:
      self._reader.join(timeout=1.0)
    self.stop()
    if not was_started:
      lines = self._printed.decode(errors="replace").strip().splitlines()
      raise RuntimeError(
        f"a worker running {os.path.basename(self._program)} died at its start: "
        f"{lines[-1] if lines else 'it printed nothing'}"
      )

  def _read_line(self, deadline: float) -> bytes | None:
    """One line; b"" at end of file; None at the deadline."""
    assert self._process is not None
    assert self._process.stdout is not None
    descriptor = self._process.stdout.fileno()
    received = b""
    with selectors.DefaultSelector() as selector:
      selector.register(descriptor, selectors.EVENT_READ)
      while not received.endswith(b"\n"):
        if not selector.select(max(0.0, deadline - time.monotonic())):
          return None
        chunk = os.read(descriptor, 65536)
        if not chunk:
          return b""
        received += chunk
        if len(received) > self._longest_answer:
          return None
    return received
