"""How a step's rollouts are cut into micro-batches of similar length.

A unit is a few rollouts of one prompt, next to each other in length. A micro-batch is so many
units: a group that is cut computes its prompt once for each of its units.

Axes: P prompts, m rollouts of each.
"""

from __future__ import annotations

from typing import NamedTuple


class LengthCut(NamedTuple):
  """Shape of a micro-batch.

  Attributes:
    units: prompts of a micro-batch, the same one perhaps twice.
    rollouts: of each unit.
  """

  units: int
  rollouts: int


def length_cut(
  prompts: int, rollouts: int, micro_batch_rollouts: int, length_buckets: int, *, shards: int = 1
) -> LengthCut:
  """The cut into at most `length_buckets` units a group, more only where micro-batches are small.

  Args:
    prompts, rollouts: P and m of the step.
    micro_batch_rollouts: rollouts of a micro-batch; 0 for one unit of every prompt.
    length_buckets: widths that are compiled.
    shards: parts into which the devices split the units; they divide them where that is possible.
  """
  total = prompts * rollouts
  cuts = []
  for width in range(1, rollouts + 1):
    units = (micro_batch_rollouts or prompts * width) // width
    size = units * width
    divides = rollouts % width == 0 and units > 0 and total % size == 0
    if divides and micro_batch_rollouts in (0, size):
      cuts.append(LengthCut(units, width))
  cuts = [cut for cut in cuts if cut.units % shards == 0] or cuts
  fitting = [cut for cut in cuts if rollouts <= length_buckets * cut.rollouts]
  # As many units as there are widths, or else as few as the devices and micro-batches allow.
  return fitting[0] if fitting else cuts[-1]


def bucket_widths(num_tokens: int, length_buckets: int) -> tuple[int, ...]:
  """Widths of the compiled micro-batches: even steps up to `num_tokens`."""
  steps = range(1, length_buckets + 1)
  return tuple(sorted({-(-num_tokens * step // length_buckets) for step in steps}))
