"""What to change in a run that does not fit: every remedy with the memory that it would leave."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from typing import Any

from tea_jax.runs.config import RunConfig

_RECOMPUTATION = ("none", "dots", "full")

Change = tuple[str, dict[str, dict[str, Any]]]
"""Flags, and the fields that they set: group -> name -> value."""


def advise(
  config: RunConfig, limit: int, peak_of: Callable[[RunConfig], int]
) -> list[tuple[str, int]]:
  """`(flags, bytes at the peak with them)`, the most effective first; then all that it takes.

  A flag with several values, such as the size of micro-batches, gets the mildest that fits, or
  else the strongest. Where no flag alone is enough, the last entry adds them up until they are.

  Args:
    config: of the run.
    limit: bytes of a device.
    peak_of: estimates the memory of a config, in bytes.
  """
  now = peak_of(config)
  found: list[tuple[int, Change]] = []
  for ladder in _ladders(config):
    best = None
    for change in ladder:
      _, peak = _changed(config, change, peak_of)
      if peak < 0.98 * now and (best is None or peak < best[0]):
        best = (peak, change)
      if peak <= limit:
        break
    if best is not None:
      found.append(best)
  found.sort(key=lambda entry: entry[0])
  advice = [(flags, peak) for peak, (flags, _) in found]
  if found and found[0][0] > limit:
    advice += _together(config, limit, peak_of, [change for _, change in found])
  return advice


def _together(
  config: RunConfig, limit: int, peak_of: Callable[[RunConfig], int], changes: list[Change]
) -> list[tuple[str, int]]:
  """One entry: changes one after the other, each that still helps, until they fit."""
  peak, used = peak_of(config), []
  for change in changes:
    changed, after = _changed(config, change, peak_of)
    if after >= peak:
      continue
    config, peak = changed, after
    used.append(change[0])
    if peak <= limit:
      break
  return [(" ".join(used), peak)] if len(used) > 1 else []


def _changed(
  config: RunConfig, change: Change, peak_of: Callable[[RunConfig], int]
) -> tuple[RunConfig, int]:
  """The config with a change, and its memory: endless where the change is refused."""
  try:
    groups = {
      group: dataclasses.replace(getattr(config, group), **fields)
      for group, fields in change[1].items()
    }
    changed = dataclasses.replace(config, **groups)
    return changed, peak_of(changed)
  except ValueError:
    return config, sys.maxsize


def _ladders(config: RunConfig) -> Iterator[list[Change]]:
  """Remedies, each from the mildest to the strongest of its values."""
  model, optimizer, mesh = config.model, config.optimizer, config.mesh
  group = config.sampling.num_rollouts
  micro = optimizer.micro_batch_rollouts or config.data.prompts_per_step * group
  sizes = []
  while micro % 2 == 0:
    micro //= 2
    sizes.append(micro)
  yield [
    (
      f"--optimizer.micro-batch-rollouts {size}",
      {"optimizer": {"micro_batch_rollouts": size}},
    )
    for size in sizes
    if size % group == 0 or group % size == 0
  ]
  stronger = _RECOMPUTATION[_RECOMPUTATION.index(model.remat) + 1 :]
  yield [(f"--model.remat {remat}", {"model": {"remat": remat}}) for remat in stronger]
  if model.compute_dtype == "float32":
    yield [("--model.compute-dtype bfloat16", {"model": {"compute_dtype": "bfloat16"}})]
  half = ("--model.param-dtype bfloat16", {"param_dtype": "bfloat16"})
  if model.lora is None:
    rank = ("--model.lora-rank 16", {"lora_rank": 16})
    yield [
      (rank[0], {"model": rank[1]}),
      (f"{rank[0]} {half[0]}", {"model": rank[1] | half[1]}),
    ]
  elif model.param_dtype == "float32":
    yield [(half[0], {"model": half[1]})]
  yield [
    (f"--mesh.fsdp {parts}", {"mesh": {"fsdp": parts}})
    for parts in (2, 4, 8, 16, 32, 64)
    if parts > mesh.fsdp
  ]
  yield [
    (f"--sampling.memory-gb {size:g}", {"sampling": {"memory_gb": size}})
    for size in (1.0, 0.5, 0.25)
    if size < (config.sampling.memory_gb or 2.0)
  ]


def describe_advice(advice: list[tuple[str, int]], *, limit: int) -> str:
  """A few lines for people.

  Args:
    advice: from `advise`.
    limit: bytes that a device has.
  """
  room = f"a device has {limit / 1e9:.2f} GB: this does not fit"
  if not advice:
    return f"{room}, and no flag alone saves enough to matter; take a smaller model."
  lines = [
    f"  {flags}: {size / 1e9:.2f} GB{'' if size <= limit else ' (still too much)'}"
    for flags, size in advice
  ]
  return "\n".join([f"{room}. At the peak it would take, with", *lines])
