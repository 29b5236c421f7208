"""How devices and micro-batches cut the groups of a step.

Axes: P prompts, m rollouts of each.
"""

from __future__ import annotations

import math


def micro_batch_shape(
  prompts: int, rollouts: int, micro_batch_rollouts: int, *, shards: int = 1
) -> tuple[int, int]:
  """(prompts, rollouts of each) of a micro-batch: of every shard's prompts where they divide.

  Whole groups stay together while they fit, since a group computes its prompt once.

  Args:
    prompts, rollouts: P and m of the batch.
    micro_batch_rollouts: rollouts of a micro-batch, at most.
    shards: parts into which the devices split the prompts.
  """
  width = math.gcd(micro_batch_rollouts, rollouts)
  height = math.gcd(micro_batch_rollouts // width, prompts)
  own, rest = divmod(micro_batch_rollouts, shards)
  if height % shards and not (prompts % shards or rest or own == 0 or rollouts % own):
    return shards, own
  return height, width


def spread_factor(prompts: int, rollouts: int, shards: int) -> int:
  """Parts of a group such that devices divide all parts: the fewest, 1 if none does.

  Args:
    prompts, rollouts: P and m of the batch.
    shards: parts into which the devices split the prompts.
  """
  fitting = [f for f in range(1, shards + 1) if prompts * f % shards == 0 and rollouts % f == 0]
  return min(fitting, default=1)
