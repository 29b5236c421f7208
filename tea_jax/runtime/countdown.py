"""Time left, from how long what is done has taken."""

from __future__ import annotations

import time

_WIDTH = 20


class Countdown:
  """A bar and the time left, as text: works where output is a file.

  Args:
    done: what was there before the clock started, e.g. the steps before a resumed run.
  """

  def __init__(self, done: int = 0):
    self._first, self._started = done, time.monotonic()

  def __call__(self, done: int, total: int) -> str:
    """E.g. `[########------------] 3:20 left`."""
    filled = round(_WIDTH * done / total)
    return f"[{'#' * filled}{'-' * (_WIDTH - filled)}] {self.left(done, total)}"

  def left(self, done: int, total: int) -> str:
    """E.g. `3:20 left`; nothing is known before something was done."""
    if done <= self._first:
      return "? left"
    each = (time.monotonic() - self._started) / (done - self._first)
    seconds = round(each * (total - done))
    hours, minutes = seconds // 3600, seconds // 60 % 60
    clock = f"{hours}:{minutes:02d}" if hours else f"{minutes}"
    return f"{clock}:{seconds % 60:02d} left"
