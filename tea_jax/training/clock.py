"""Where the time of a training step goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from tea_jax.runtime.compilation import compile_seconds


class Clock:
  """Seconds of each part of a step; what no part of the model or the reward took is overhead."""

  def __init__(self):
    self._parts: dict[str, float] = {}
    self._started = time.perf_counter()
    self._compiled = compile_seconds()

  @contextmanager
  def __call__(self, part: str) -> Iterator[None]:
    """Times the block as a part of the step."""
    started = time.perf_counter()
    yield
    self._parts[part] = time.perf_counter() - started

  def timings(self, num_tokens: int) -> dict[str, float]:
    """`time/*` in seconds, tokens a second, and the share of overhead."""
    step = time.perf_counter() - self._started
    busy = sum(self._parts[part] for part in ("rollout", "reward", "reference", "update"))
    return {
      **{f"time/{part}": seconds for part, seconds in self._parts.items()},
      "time/step": step,
      "time/compile": compile_seconds() - self._compiled,
      "tokens_per_second/rollout": num_tokens / self._parts["rollout"],
      "tokens_per_second/update": num_tokens / self._parts["update"],
      "overhead_frac": (step - busy) / step,
    }
