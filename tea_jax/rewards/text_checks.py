"""Patterns and schemas on texts of a model, in a process of bounded time and memory."""

from __future__ import annotations

import json
import logging
import pathlib
import reprlib
import threading
import weakref
from collections.abc import Sequence
from typing import Any, Literal

from tea_jax.rewards.text_worker import longest_seconds
from tea_jax.runtime.worker_process import WorkerProcess

logger = logging.getLogger(__name__)

_WORKER = str(pathlib.Path(__file__).with_name("text_worker.py"))
_START_SECONDS = 60.0
_BATCH = 256  # texts of one request


class TextCheck:
  """One pattern or schema; a text that takes more than a second counts as if it had no match.

  Its process starts with the first text.

  Attributes:
    pattern, flags: what it asks for, as a compiled pattern has them.
  """

  def __init__(
    self, check: Literal["search", "fullmatch", "last", "schema"], rules: Any, *, flags: int = 0
  ):
    """Args:
    check: what is asked of a text; see `text_worker`.
    rules: the pattern, or the JSON schema.
    flags: of `re`.
    """
    self.pattern = rules if isinstance(rules, str) else json.dumps(rules, sort_keys=True)
    self.flags = flags
    self._task = {"check": check, "rules": rules, "flags": flags}
    self._process = WorkerProcess(_WORKER, longest_answer=1 << 30)
    self._lock = threading.Lock()
    self._told = False
    weakref.finalize(self, self._process.stop)

  def __call__(self, texts: Sequence[str]) -> list[Any]:
    """What is found in each text."""
    found: list[Any] = []
    late = 0
    for start in range(0, len(texts), _BATCH):
      batch = list(texts[start : start + _BATCH])
      answer = self._ask(batch)
      found += answer["found"]
      late += len(answer["late"])
    if late and not self._told:
      self._told = True
      logger.warning(
        "%d of %d completions take too long with %s and count as no match; patterns that repeat a "
        "repeat, like (a+)+, take exponential time",
        late,
        len(texts),
        reprlib.repr(self.pattern),
      )
    return found

  def _ask(self, texts: list[str]) -> dict[str, list[Any]]:
    # Seconds of the worker are of the processor; a busy machine may need more by the clock.
    seconds = 4 * longest_seconds(len(texts)) + 10.0
    with self._lock:
      extra = 0.0 if self._process.started else _START_SECONDS
      answer = self._process.ask({**self._task, "texts": texts}, seconds + extra)
    if len(answer.get("found", ())) == len(texts):
      return answer
    if len(texts) == 1:
      nothing = {"last": None, "schema": "parsed"}.get(self._task["check"], False)
      return {"found": [nothing], "late": [0]}
    # The worker died of a text, or hung where no signal reaches it: the others get their answer.
    halves = [self._ask(texts[: len(texts) // 2]), self._ask(texts[len(texts) // 2 :])]
    return {name: [*halves[0][name], *halves[1][name]] for name in ("found", "late")}

  def close(self) -> None:
    """Stops the process; it starts again when needed."""
    self._process.stop()
