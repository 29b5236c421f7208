"""What a run tells: JSONL files that survive a kill, a live terminal, TensorBoard.

`metrics.jsonl` holds only numbers that the run's seed decides, so that a run that was killed and
went on writes the same bytes; wall-clock times and memory go to `timings.jsonl`.
"""

from __future__ import annotations

import math
import os
import pathlib

import numpy as np

from tea_jax.tail.order_statistics import mean_subset_maximum


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
    metrics[f"best_of_n/{size}"] = mean_subset_maximum(complete, size).mean()
    size *= 2
  return {name: float(value) for name, value in metrics.items()}


def completion_metrics(lengths: np.ndarray, finished: np.ndarray) -> dict[str, float]:
  """Lengths of the completions in tokens, and how many were cut at the limit.

  Args:
    lengths: `[P, m]`.
    finished: `[P, m]`, False where cut.

  `completions/live_frac` is the share of rows that still write, averaged over the longest one's
  steps: what decoding does not spend on finished rows.
  """
  lengths, finished = np.asarray(lengths), np.asarray(finished)
  ended = lengths[finished]
  return {
    "completions/mean_length": float(lengths.mean()),
    "completions/min_length": float(lengths.min()),
    "completions/max_length": float(lengths.max()),
    "completions/terminated_length": float(ended.mean()) if ended.size else math.nan,
    "completions/clipped_ratio": float(1.0 - finished.mean()),
    "completions/live_frac": float(lengths.mean() / max(lengths.max(), 1)),
    "num_tokens": int(lengths.sum()),
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
