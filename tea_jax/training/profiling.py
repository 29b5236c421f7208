"""What the hardware did: a trace of chosen steps, and the share of its peak that a step used."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator, Mapping

import jax


@contextlib.contextmanager
def traced(folder: pathlib.Path, wanted: bool) -> Iterator[None]:
  """Records the block with JAX's profiler into a folder, if it is wanted.

  TensorBoard's profile plug-in and XProf read the folder; `perfetto_trace.json.gz` in it opens in
  Perfetto.
  """
  if not wanted:
    yield
    return
  with jax.profiler.trace(str(folder), create_perfetto_trace=True):
    yield


def utilization(
  timings: Mapping[str, float],
  *,
  num_tokens: int,
  num_params: int,
  peak_teraflops: float,
  num_devices: int = 1,
) -> dict[str, float]:
  """Share of the devices' peak that the model's own arithmetic took, as the field counts it.

  rollout: 2 n T / (seconds peak);  update: 6 n T / (seconds peak), n parameters, T completion
  tokens. Prompts, attention, what is recomputed and padding are not counted.

  Args:
    timings: with time/rollout and time/update in seconds.
    num_tokens: completion tokens of the step.
    num_params: of the model.
    peak_teraflops: of one device, in the dtype of its products; 0 gives nothing.
    num_devices: of the mesh.

  Example:
    >>> times = {"time/rollout": 2.0, "time/update": 3.0}
    >>> utilization(times, num_tokens=1000, num_params=10**9, peak_teraflops=10)
    {'utilization/rollout': 0.1, 'utilization/update': 0.2}
  """
  if not peak_teraflops:
    return {}
  peak = peak_teraflops * 1e12 * num_devices
  work = 2.0 * num_params * num_tokens
  return {
    "utilization/rollout": work / (timings["time/rollout"] * peak),
    "utilization/update": 3 * work / (timings["time/update"] * peak),
  }
