"""A pool of worker processes with a hard time-out for each task.

`concurrent.futures` cannot stop a task that hangs in C code; here the worker is killed and
replaced. Workers are plain programs that answer JSON lines (see `math_worker.py`), so there is no
pickling, no fork of a process that runs JAX, and no re-import of the caller's main module.
"""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Sequence
from typing import Any

from tea_jax.runtime.worker_process import WorkerProcess


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
    self._workers = [WorkerProcess(program) for _ in range(num_workers)]
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

    def serve(worker: WorkerProcess) -> None:
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


def _stop_all(workers: Sequence[WorkerProcess]) -> None:
  for worker in workers:
    worker.stop()
