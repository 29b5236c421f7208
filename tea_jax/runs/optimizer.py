"""The flags of the optimiser: how gradients become updates."""

from __future__ import annotations

import dataclasses
from typing import Literal

from tea_jax.runs.checks import check_fields, require


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """How gradients become updates.

  Attributes:
    name: "adamw" (adam when weight_decay is 0), "sgd" (with momentum beta1), or "lion".
    learning_rate: peak of the schedule.
    schedule: after the warm-up: "constant", or "linear" or "cosine" decay to
      final_learning_rate_ratio of the peak one step after the last.
    warmup_steps: linear from 0; counted in steps.
    final_learning_rate_ratio: in [0, 1].
    beta1: decay of the first moment.
    beta2: decay of the second moment.
    epsilon: added to the root of the second moment.
    weight_decay: decoupled, times the learning rate.
    max_gradient_norm: gradients with a larger global norm are scaled down to it; 0 for no clip.
    updates_per_batch: updates on each batch of rollouts; above 1 the ratios differ from 1.
    micro_batch_rollouts: rollouts of one forward and backward pass; gradients are added up over
      them. 0 for the whole batch. Less memory, the same update up to float addition order.
    length_buckets: completions are sorted into micro-batches of so many compiled widths, so that
      short ones are not padded to the longest; 1 pads all. The same update up to float addition
      order; 3 or 4 pay where lengths differ. A group's prompt is computed as often as it is cut.
    max_skipped: consecutive updates that may be skipped for a gradient that is not finite before
      the run stops.
  """

  name: Literal["adamw", "sgd", "lion"] = "adamw"
  learning_rate: float = 1e-5
  schedule: Literal["constant", "linear", "cosine"] = "constant"
  warmup_steps: int = 0
  final_learning_rate_ratio: float = 0.0
  beta1: float = 0.9
  beta2: float = 0.95
  epsilon: float = 1e-8
  weight_decay: float = 0.0
  max_gradient_norm: float = 1.0
  updates_per_batch: int = 1
  micro_batch_rollouts: int = 0
  length_buckets: int = 1
  max_skipped: int = 10

  def __post_init__(self) -> None:
    check_fields(self, "optimizer")
    require(self.learning_rate > 0, f"learning_rate={self.learning_rate} must be positive.")
    require(
      self.updates_per_batch >= 1, f"updates_per_batch={self.updates_per_batch} must be >= 1."
    )
    require(
      self.micro_batch_rollouts >= 0,
      f"micro_batch_rollouts={self.micro_batch_rollouts} must be >= 0 (0: the whole batch).",
    )
    require(
      1 <= self.length_buckets <= 8,
      f"length_buckets={self.length_buckets} must be from 1 to 8: each width is compiled.",
    )
    require(self.max_skipped >= 1, f"max_skipped={self.max_skipped} must be at least 1.")
    require(self.weight_decay >= 0, f"weight_decay={self.weight_decay} must be >= 0.")
    require(self.warmup_steps >= 0, f"warmup_steps={self.warmup_steps} must be >= 0.")
    require(
      0 <= self.final_learning_rate_ratio <= 1,
      f"final_learning_rate_ratio={self.final_learning_rate_ratio} must be in [0, 1].",
    )
    require(
      self.schedule != "constant" or self.final_learning_rate_ratio == 0,
      f"final_learning_rate_ratio={self.final_learning_rate_ratio} has no effect with "
      'schedule="constant"; use "linear" or "cosine".',
    )
    require(self.epsilon > 0, f"epsilon={self.epsilon} must be positive.")
    require(self.max_gradient_norm >= 0, f"max_gradient_norm={self.max_gradient_norm} is negative.")
    for name in ("beta1", "beta2"):
      value = getattr(self, name)
      require(0 <= value < 1, f"{name}={value} must be in [0, 1).")
