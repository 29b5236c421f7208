"""All updates on one batch of rollouts, and what becomes of gradients that are not finite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from tea_jax.runs.state import State
from tea_jax.training.learner import Learner
from tea_jax.training.update import Batch


class Updated(NamedTuple):
  """What the updates on a batch leave.

  Attributes:
    trainable, optimizer: arrays after the last update.
    skipped: consecutive updates that were not finite, those of earlier batches included.
    metrics: of the first update, and those that only later ones have; `skipped` is their number.
  """

  trainable: Any
  optimizer: Any
  skipped: int
  metrics: dict[str, float]


def update_on_batch(
  learner: Learner,
  state: State,
  frozen: Any,
  batch: Batch,
  *,
  kl_coefficient: float,
  updates: int,
  rate: np.float32,
  warn: Callable[[int, str], None],
) -> Updated:
  """Runs all updates of a batch; from the second on ratios are to the first's log-probs.

  Args:
    learner: the compiled update.
    state: its trainable parameters and optimiser state are donated.
    frozen: the other parameters.
    batch: of rollouts.
    kl_coefficient: weight of the KL.
    updates: on this batch.
    rate: learning rate of all of them.
    warn: told the number of an update that was skipped, and a sentence.
  """
  beta = np.float32(kl_coefficient)
  trainable, optimizer, skipped = state.trainable, state.optimizer, state.skipped
  collected: list[dict[str, float]] = []
  for update in range(updates):
    result = learner.update(trainable, optimizer, frozen, batch, rate, beta)
    trainable, optimizer = result.trainable, result.optimizer_state
    metrics = {name: float(value) for name, value in jax.device_get(result.metrics).items()}
    collected.append(metrics)
    skipped = skipped + 1 if metrics["skipped"] else 0
    if skipped:
      warn(
        update,
        f"the gradient is not finite (norm {metrics['grad_norm']}); the update was skipped, "
        f"{skipped} in a row.",
      )
    if batch.old_logprobs is None:
      batch = batch._replace(old_logprobs=result.logprobs)
  later = {name: value for name, value in collected[-1].items() if name not in collected[0]}
  later["skipped"] = sum(metrics["skipped"] for metrics in collected)
  return Updated(trainable, optimizer, skipped, {**collected[0], **later})
