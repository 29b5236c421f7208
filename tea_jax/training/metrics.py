"""What a run tells: JSONL files that survive a kill, a live terminal, TensorBoard.

`metrics.jsonl` holds only numbers that the run's seed decides, so that a run that was killed and
went on writes the same bytes; wall-clock times and memory go to `timings.jsonl`.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from scipy.special import gammaln

from tea_jax.training.options import LoggingOptions

# What the terminal shows, in this order, with its heading; absent metrics are left out.
_SHOWN = (
  ("reward/mean", "reward"),
  ("reward/max", "max"),
  ("predicted_best_of_budget", "predicted bo-N"),
  ("kl", "KL"),
  ("entropy", "entropy"),
  ("completions/mean_length", "length"),
  ("frac_reward_zero_std", "flat groups"),
  ("grad_norm", "grad norm"),
  ("time/rollout", "rollout s"),
  ("time/update", "update s"),
  ("time/step", "step s"),
)
_LIVE_ROWS = 12


class JsonlLog:
  """One JSON object a line, flushed line by line.

  Args:
    path: of the file; made if absent.
    offset: bytes to keep of an existing file; what a killed run wrote after its checkpoint goes.

  Raises:
    ValueError: if the file is shorter than `offset`.
  """

  def __init__(self, path: str | pathlib.Path, *, offset: int = 0):
    self.path = pathlib.Path(path)
    self.path.parent.mkdir(parents=True, exist_ok=True)
    self._file = open(self.path, "ab")  # noqa: SIM115 (open for the whole run)
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
    self._file.write(line.encode() + b"\n")
    self._file.flush()

  def close(self) -> None:
    self._file.close()


def plain(value: Any) -> Any:
  """JSON has no NaN and no infinity: null."""
  if isinstance(value, (bool, str)) or value is None:
    return value
  if isinstance(value, (int, np.integer)):
    return int(value)
  if isinstance(value, (list, tuple)):
    return [plain(v) for v in value]
  if isinstance(value, Mapping):
    return {k: plain(v) for k, v in value.items()}
  value = float(value)
  return value if math.isfinite(value) else None


class RunLog:
  """All outputs of a run: `metrics.jsonl`, `timings.jsonl`, `rollouts/samples.jsonl`, terminal.

  Args:
    folder: the run folder.
    options: see `LoggingOptions`.
    steps: of the whole run, for the progress bar.
    offsets: from the checkpoint the run goes on from; None for a new run.
    console: where to print.
  """

  FILES = ("metrics.jsonl", "timings.jsonl", "rollouts/samples.jsonl")

  def __init__(
    self,
    folder: str | pathlib.Path,
    options: LoggingOptions,
    *,
    steps: int,
    offsets: Mapping[str, int] | None = None,
    first_step: int = 0,
    console: Console | None = None,
  ):
    folder = pathlib.Path(folder)
    offsets = offsets or {}
    self._logs = {n: JsonlLog(folder / n, offset=offsets.get(n, 0)) for n in self.FILES}
    self._steps = steps
    self._console = console or Console()
    self._rows: list[dict[str, Any]] = []
    self._live: Live | None = None
    if options.live and self._console.is_terminal:
      self._live = Live(console=self._console, auto_refresh=False)
      self._live.start()
    self._tensorboard = None
    if options.tensorboard:
      try:
        from tensorboardX import SummaryWriter
      except ImportError as error:
        raise ValueError(
          "--logging.tensorboard needs tensorboardX; pip install tensorboardX, or leave it out."
        ) from error
      self._tensorboard = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step)

  def offsets(self) -> dict[str, int]:
    """Byte offsets of all files, for the checkpoint."""
    return {name: log.offset for name, log in self._logs.items()}

  def say(self, sentence: str) -> None:
    """One line to the user, above the live table."""
    self._console.print(sentence, highlight=False, markup=False, soft_wrap=True)

  def step(self, step: int, metrics: Mapping[str, Any], timings: Mapping[str, Any]) -> None:
    """Writes one step everywhere."""
    self._logs["metrics.jsonl"].append({"step": step, **metrics})
    self._logs["timings.jsonl"].append({"step": step, **timings})
    everything = {**metrics, **timings}
    if self._tensorboard is not None:
      for name, value in everything.items():
        if isinstance(value, (int, float, np.floating)):
          self._tensorboard.add_scalar(name, float(value), step)
      self._tensorboard.flush()  # A run that is killed goes on after its last checkpoint.
    self._rows = [*self._rows, {"step": step, **everything}][-_LIVE_ROWS:]
    if self._live is not None:
      self._live.update(self._table(step), refresh=True)
    else:
      shown = [f"{title} {_short(everything[k])}" for k, title in _SHOWN if k in everything]
      self.say(f"step {step + 1}/{self._steps}  " + "  ".join(shown))

  def samples(self, record: Mapping[str, Any]) -> None:
    """One prompt with some of its completions, as text."""
    self._logs["rollouts/samples.jsonl"].append(record)

  def close(self) -> None:
    for log in self._logs.values():
      log.close()
    if self._tensorboard is not None:
      self._tensorboard.close()
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
    return outer


def _short(value: Any) -> str:
  return "" if value is None else f"{float(value):.4g}"


def read_jsonl(path: str | pathlib.Path) -> list[dict[str, Any]]:
  """All records of a JSONL file; a last line that a kill cut short is left out."""
  lines = pathlib.Path(path).read_bytes().split(b"\n")
  return [json.loads(line) for line in lines[:-1]]


def reward_metrics(rewards: np.ndarray, scored: np.ndarray | None = None) -> dict[str, float]:
  """Location, spread and best-of-N of the rewards of one step.

  Args:
    rewards: `[P, m]` float64.
    scored: `[P, m]`, which of them count; None for all.

  Returns:
    `reward/{mean,std,min,max,p10,p50,p90}`, `frac_reward_zero_std` (groups without spread, or with
    fewer than two scored), `best_of_n/{1,2,4,...}` (exact over the subsets of each group, mean over
    the groups that are scored in full).
  """
  rewards = np.asarray(rewards, np.float64)
  scored = np.ones(rewards.shape, bool) if scored is None else np.asarray(scored)
  values = rewards[scored]
  if not values.size:
    return {"reward/scored_frac": 0.0}
  quantiles = np.quantile(values, [0.1, 0.5, 0.9])
  flat = [group[s].size < 2 or np.ptp(group[s]) == 0 for group, s in zip(rewards, scored)]
  metrics = {
    "reward/mean": values.mean(),
    "reward/std": values.std(),
    "reward/min": values.min(),
    "reward/max": values.max(),
    **{f"reward/p{p}": q for p, q in zip((10, 50, 90), quantiles)},
    "reward/scored_frac": scored.mean(),
    "frac_reward_zero_std": np.mean(flat),
  }
  complete = rewards[scored.all(-1)]
  size = 1
  while complete.size and size <= rewards.shape[-1]:
    metrics[f"best_of_n/{size}"] = _expected_maximum(complete, size).mean()
    size *= 2
  return {name: float(value) for name, value in metrics.items()}


def _expected_maximum(rewards: np.ndarray, size: int) -> np.ndarray:
  """Mean maximum over the subsets of `size`: sum_i C(i-1, size-1) / C(m, size) r_(i)."""
  m = rewards.shape[-1]
  rank = np.arange(size, m + 1)

  def log_choose(n, k):
    return gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)

  weights = np.exp(log_choose(rank - 1, size - 1) - log_choose(m, size))
  return np.sort(rewards, axis=-1)[..., size - 1 :] @ weights


def completion_metrics(lengths: np.ndarray, finished: np.ndarray) -> dict[str, float]:
  """Lengths of the completions in tokens, and how many were cut at the limit.

  Args:
    lengths: `[P, m]`.
    finished: `[P, m]`, False where cut.
  """
  lengths, finished = np.asarray(lengths), np.asarray(finished)
  ended = lengths[finished]
  return {
    "completions/mean_length": float(lengths.mean()),
    "completions/min_length": float(lengths.min()),
    "completions/max_length": float(lengths.max()),
    "completions/terminated_length": float(ended.mean()) if ended.size else math.nan,
    "completions/clipped_ratio": float(1.0 - finished.mean()),
    "num_tokens": int(lengths.sum()),
  }


def advantage_metrics(advantages: np.ndarray) -> dict[str, float]:
  """Location and spread of the advantages that the update used."""
  advantages = np.asarray(advantages, np.float64)
  return {
    "advantage/mean": float(advantages.mean()),
    "advantage/std": float(advantages.std()),
    "advantage/min": float(advantages.min()),
    "advantage/max": float(advantages.max()),
    "advantage/nonzero_frac": float(np.mean(advantages != 0)),
  }


def memory_metrics() -> dict[str, float]:
  """Memory of this process and of the fullest accelerator, in GB."""
  import jax

  pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1]) if _has_proc() else 0
  metrics = {"memory/host_gb": pages * os.sysconf("SC_PAGE_SIZE") / 1e9}
  stats = [d.memory_stats() or {} for d in jax.local_devices() if d.platform != "cpu"]
  if stats:
    metrics["memory/device_gb"] = max(s.get("bytes_in_use", 0) for s in stats) / 1e9
    metrics["memory/device_peak_gb"] = max(s.get("peak_bytes_in_use", 0) for s in stats) / 1e9
  return metrics


def _has_proc() -> bool:
  return pathlib.Path("/proc/self/statm").exists()
