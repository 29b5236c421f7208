"""What a run tells: JSONL files that survive a kill, a live terminal, other people's loggers.

`metrics.jsonl` holds only numbers that the run's seed decides, so that a run that was killed and
went on writes the same bytes; wall-clock times and memory go to `timings.jsonl`.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from tea_jax.runs.checkpoints import CheckpointError
from tea_jax.runs.groups import LoggingConfig
from tea_jax.runs.loggers import make_loggers
from tea_jax.runtime import processes
from tea_jax.runtime.countdown import Countdown
from tea_jax.runtime.extras import extra
from tea_jax.runtime.files import plain
from tea_jax.runtime.secrets import brief

with extra("train", "a run's log"):
  from rich.console import Console
  from rich.live import Live
  from rich.progress_bar import ProgressBar
  from rich.table import Table

_SHOWN = (
  ("loss", "loss"),
  ("nll_per_token", "NLL a token"),
  ("probability/mean", "mean p"),
  ("validation/loss", "held-out loss"),
  ("reward/mean", "reward"),
  ("reward/max", "max"),
  ("predicted_best_of_budget", "predicted bo-N"),
  ("kl", "KL"),
  ("entropy", "entropy"),
  ("completions/mean_length", "length"),
  ("frac_reward_zero_std", "flat groups"),
  ("advantage/zero_group_frac", "no signal"),
  ("grad_norm", "grad norm"),
  ("time/rollout", "rollout s"),
  ("time/update", "update s"),
  ("time/step", "step s"),
  ("time/compile", "of it compiling"),
)
_BRIEF_COMPILE = 1.0  # seconds; less is not told


_LIVE_ROWS = 12


class JsonlLog:
  """One JSON object a line, flushed line by line.

  Args:
    path: of the file; made if absent.
    offset: bytes to keep of an existing file; what a killed run wrote after its checkpoint goes.

  Raises:
    ValueError: if the file is shorter than `offset`, or a link.
  """

  def __init__(self, path: str | pathlib.Path, *, offset: int = 0):
    self.path = pathlib.Path(path)
    self.path.parent.mkdir(parents=True, exist_ok=True)
    # Neither through a link, which would empty what it leads to, nor waiting for a pipe.
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
      self._file = os.fdopen(os.open(self.path, flags, 0o666), "ab")
    except OSError as error:
      raise ValueError(
        f"{self.path} cannot be opened ({os.strerror(error.errno or 0)}); if it is a link, put the "
        "file itself there."
      ) from error
    size = self._file.tell()
    if size < offset:
      raise ValueError(
        f"{self.path} has {size} bytes, but the checkpoint was written when it had {offset}: it "
        "was changed since; start a new run in another folder."
      )
    self._file.truncate(offset)
    self._file.seek(0, os.SEEK_END)

  @property
  def offset(self) -> int:
    """Bytes written so far; stored in checkpoints."""
    return self._file.tell()

  def append(self, record: Mapping[str, Any]) -> None:
    line = json.dumps({k: plain(v) for k, v in record.items()}, allow_nan=False)
    try:
      self._file.write(line.encode() + b"\n")
      self._file.flush()
    except OSError as error:
      raise CheckpointError(
        f"{self.path} could not be written ({os.strerror(error.errno or 0)}); free some space and "
        "run the same command again: it goes on from the last checkpoint."
      ) from error

  def close(self) -> None:
    with contextlib.suppress(OSError):  # what a full disk did not take was reported already
      self._file.close()


class RunLog:
  """All outputs of a run: `metrics.jsonl`, `timings.jsonl`, `rollouts/samples.jsonl`, terminal.

  Args:
    folder: the run folder.
    options: see `LoggingConfig`.
    steps: of the whole run, for the progress bar.
    offsets: from the checkpoint the run goes on from; None for a new run.
    console: where to print.
  """

  FILES = ("metrics.jsonl", "timings.jsonl", "rollouts/samples.jsonl")

  def __init__(
    self,
    folder: str | pathlib.Path,
    options: LoggingConfig,
    *,
    steps: int,
    offsets: Mapping[str, int] | None = None,
    first_step: int = 0,
    console: Console | None = None,
  ):
    folder = pathlib.Path(folder)
    offsets = offsets or {}
    self._logs = {n: JsonlLog(folder / n, offset=offsets.get(n, 0)) for n in self.FILES}
    self._steps, self._first_step = steps, first_step
    self._console = console or Console()
    self._rows: list[dict[str, Any]] = []
    self._countdown = Countdown(first_step)
    self._live: Live | None = None
    if options.live and self._console.is_terminal:
      self._live = Live(console=self._console, auto_refresh=False)
      self._live.start()
    self._loggers = make_loggers(options.to, folder, project=options.project, first_step=first_step)

  def offsets(self) -> dict[str, int]:
    """Byte offsets of all files, for the checkpoint."""
    return {name: log.offset for name, log in self._logs.items()}

  def say(self, sentence: str) -> None:
    """One line to the user, above the live table."""
    self._console.print(sentence, highlight=False, markup=False, soft_wrap=True)

  def starting(self) -> None:
    """Tells why the first step of a process is slow, if there is a step to go."""
    if self._first_step < self._steps:
      self.say(
        f"step {self._first_step + 1}: compiling first; the programs are kept for later runs"
      )

  def step(self, step: int, metrics: Mapping[str, Any], timings: Mapping[str, Any]) -> None:
    """Writes one step everywhere."""
    self._logs["metrics.jsonl"].append({"step": step, **metrics})
    self._logs["timings.jsonl"].append({"step": step, **timings})
    everything = {**metrics, **timings}
    numbers = {
      name: float(value)
      for name, value in everything.items()
      if isinstance(value, (int, float, np.floating))
    }
    for logger in self._loggers:
      logger.log(step, numbers)
    if everything.get("time/compile", 0.0) < _BRIEF_COMPILE:
      everything.pop("time/compile", None)
    self._rows = [*self._rows, {"step": step, **everything}][-_LIVE_ROWS:]
    if self._live is not None:
      self._live.update(self._table(step), refresh=True)
    else:
      shown = [f"{title} {_short(everything[k])}" for k, title in _SHOWN if k in everything]
      done = self._countdown(step + 1, self._steps)
      self.say("  ".join([f"step {step + 1}/{self._steps}", done, *shown]))

  def samples(self, record: Mapping[str, Any]) -> None:
    """One prompt with some of its completions, as text."""
    self._logs["rollouts/samples.jsonl"].append(record)

  def close(self) -> None:
    for log in self._logs.values():
      log.close()
    for logger in self._loggers:
      logger.close()
    if self._live is not None:
      self._live.stop()

  def _table(self, step: int) -> Table:
    titles = [(k, title) for k, title in _SHOWN if any(k in row for row in self._rows)]
    outer = Table.grid()
    table = Table("step", *(title for _, title in titles), box=None, header_style="bold")
    for row in self._rows:
      table.add_row(str(row["step"] + 1), *(_short(row.get(k)) for k, _ in titles))
    outer.add_row(table)
    outer.add_row(ProgressBar(total=self._steps, completed=step + 1, width=60))
    outer.add_row(self._countdown.left(step + 1, self._steps))
    return outer


class _OtherLog(RunLog):
  """That of a process whose numbers the first process writes too."""

  def __init__(self) -> None:
    self._logs, self._loggers, self._live = {}, [], None
    self._steps = self._first_step = 0

  def say(self, sentence: str) -> None:
    del sentence

  def step(self, step: int, metrics: Mapping[str, Any], timings: Mapping[str, Any]) -> None:
    del step, metrics, timings

  def samples(self, record: Mapping[str, Any]) -> None:
    del record


def open_log(folder: str | pathlib.Path, options: LoggingConfig, **arguments: Any) -> RunLog:
  """The log of a run; where it has several processes, only the first one's writes and prints.

  Args:
    folder, options, **arguments: see `RunLog`.
  """
  with processes.together():
    return RunLog(folder, options, **arguments) if processes.is_first() else _OtherLog()


def _short(value: Any) -> str:
  return "" if value is None else f"{float(value):.4g}"


def read_jsonl(path: str | pathlib.Path) -> list[dict[str, Any]]:
  """All records of a JSONL file; a last line that a kill cut short is left out.

  Raises:
    ValueError: naming file and line, if one is damaged.
  """
  records = []
  for number, line in enumerate(pathlib.Path(path).read_bytes().split(b"\n")[:-1], start=1):
    try:
      record = json.loads(line)
    except (ValueError, RecursionError) as error:
      raise ValueError(f"line {number} of {path} is not JSON: {brief(error)}") from error
    if not isinstance(record, dict):
      raise ValueError(f"line {number} of {path} is no JSON object")
    records.append(record)
  return records
