"""A pool of worker processes with a hard time-out for each task.

`concurrent.futures` cannot stop a task that hangs in C code; here the worker is killed and
replaced. Workers are plain programs that answer JSON lines (see `math_worker.py`), so there is no
pickling, no fork of a process that runs JAX, and no re-import of the caller's main module.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import selectors
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from typing import Any

TIMED_OUT = {"timeout": True}
_LONGEST_LINE = 1 << 20  # bytes of an answer
_KEPT_MESSAGES = 1 << 13  # bytes of what a worker printed last


class WorkerPool:
  """Runs JSON tasks on `num_workers` copies of a program, each task under a deadline."""

  def __init__(
    self, program: str, *, num_workers: int = 2, timeout: float = 10.0, start_timeout: float = 60.0
  ):
    """Args:
    program: path of a Python file that answers each JSON line with one JSON line.
    num_workers: processes, started when first needed.
    timeout: seconds a task may take before its worker is killed.
    start_timeout: more seconds for a worker's first task, which includes its imports.
    """
    if num_workers < 1:
      raise ValueError(f"num_workers={num_workers} must be at least 1")
    if timeout <= 0:
      raise ValueError(f"timeout={timeout} must be positive")
    self.timeout = timeout
    self._start_timeout = start_timeout
    self._workers = [_Worker(program) for _ in range(num_workers)]
    self._finalizer = weakref.finalize(self, _stop_all, self._workers)

  def map(self, tasks: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Answers in the order of the tasks; `{"timeout": True}` for those that took too long.

    Raises:
      RuntimeError: a worker died while starting, with what it printed.
    """
    pending: queue.SimpleQueue[int] = queue.SimpleQueue()
    for index in range(len(tasks)):
      pending.put(index)
    answers: list[dict[str, Any]] = [{} for _ in tasks]
    errors: list[BaseException] = []

    def serve(worker: _Worker) -> None:
      try:
        while not errors:
          index = pending.get_nowait()
          extra = 0.0 if worker.started else self._start_timeout
          answers[index] = worker.ask(tasks[index], self.timeout + extra)
      except queue.Empty:
        return
      except BaseException as error:
        errors.append(error)

    threads = [
      threading.Thread(target=serve, args=(worker,), daemon=True)
      for worker in self._workers[: len(tasks)]
    ]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    if errors:
      raise errors[0]
    return answers

  def close(self) -> None:
    """Stops the workers; they start again when needed."""
    _stop_all(self._workers)


class _Worker:
  def __init__(self, program: str):
    self._program = program
    self._process: subprocess.Popen[bytes] | None = None
    self._printed = b""
    self._reader: threading.Thread | None = None
    self.started = False

  def ask(self, task: dict[str, Any], timeout: float) -> dict[str, Any]:
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
      [sys.executable, self._program],
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
        if len(received) > _LONGEST_LINE:
          return None
    return received


def _stop_all(workers: Sequence[_Worker]) -> None:
  for worker in workers:
    worker.stop()
