"""What can be seen of a rollout while it decodes: reports between segments, and a bar of them.

Axes: P prompts, m rollouts of each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tea_jax.rollout.decode_loop import DecodeState
from tea_jax.runtime import processes
from tea_jax.runtime.extras import extra

if TYPE_CHECKING:
  from rich.console import Console


class Progress(NamedTuple):
  """What a callback sees between two decode segments.

  Attributes:
    prompts: indices `[P]` into the prompts of the call that are being decoded.
    rollouts: indices `[m]` of the rollouts of each that are being decoded.
    step: tokens decoded so far by rows that have not ended.
    total_steps: the most there can be.
    completion_tokens: `[P, m, step]` so far, 0 after a row's end.
    completion_lengths: `[P, m]` so far.
    finished: `[P, m]` rows that have ended.
    rows_done, rows_total: of the whole call.
  """

  prompts: np.ndarray
  rollouts: np.ndarray
  step: int
  total_steps: int
  completion_tokens: np.ndarray
  completion_lengths: np.ndarray
  finished: np.ndarray
  rows_done: int
  rows_total: int


def report(
  progress: Callable[[Progress], None],
  state: DecodeState,
  step: int,
  *,
  prompts: np.ndarray,
  rollouts: np.ndarray,
  rows_before: int,
  rows_total: int,
  total_steps: int,
) -> None:
  """Calls back with the rows of real prompts."""
  rows = len(prompts) * len(rollouts)
  tokens, lengths, finished = (
    processes.fetch(value)[:rows].reshape(len(prompts), len(rollouts), *value.shape[1:])
    for value in (state.tokens[:, :step], state.lengths, state.done)
  )
  ended = rows if step >= total_steps else int(finished.sum())
  progress(
    Progress(
      prompts=prompts,
      rollouts=rollouts,
      step=step,
      total_steps=total_steps,
      completion_tokens=tokens,
      completion_lengths=lengths,
      finished=finished,
      rows_done=rows_before + ended,
      rows_total=rows_total,
    )
  )


@contextmanager
def progress_bar(console: Console | None = None) -> Iterator[Callable[[Progress], None]]:
  """A terminal bar of the rollouts of one call of `RolloutEngine.generate`.

  Example:
    with progress_bar() as bar:
      engine.generate(params, prompts, key=key, num_rollouts=16, progress=bar)

  Args:
    console: where to draw; the terminal's standard error by default.

  Yields:
    The callback for `progress=`.
  """
  with extra("train", "a progress bar"):
    from rich import progress as rich_progress
    from rich.console import Console

  columns = (
    rich_progress.TextColumn("{task.description}"),
    rich_progress.BarColumn(),
    rich_progress.TextColumn("{task.percentage:.0f}%"),
    rich_progress.TimeElapsedColumn(),
  )
  with rich_progress.Progress(*columns, console=console or Console(stderr=True)) as bars:
    task = bars.add_task("rollouts", total=None)

    def show(progress: Progress) -> None:
      # A row that goes on counts by its share of the longest completion.
      going = 0 if progress.step >= progress.total_steps else int((~progress.finished).sum())
      completed = progress.rows_done + going * progress.step / progress.total_steps
      bars.update(
        task,
        total=progress.rows_total,
        completed=completed,
        description=f"rollouts {progress.rows_done} of {progress.rows_total}",
      )

    yield show
