"""The flags of the objective: aggregation, KL, clipping, entropy, truncation."""

from __future__ import annotations

import dataclasses
from typing import Literal

from tea_jax.runs.checks import check_fields, require

KLEstimator = Literal["k1", "k2", "k3"]


KLGradient = Literal["token", "trajectory", "estimator"]

Aggregation = Literal["token_sum", "constant_length", "token_mean", "sequence_mean"]


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
  """What the update minimises, apart from the advantages.

  Attributes:
    aggregation: how token terms become one loss. "token_sum": sum over tokens, mean over rollouts;
      proportional to the trajectory policy gradient, no bias (the papers' choice).
      "constant_length": the same divided by max_completion_length, no bias, only a scale.
      "token_mean": sum over all tokens divided by their number; biased, since every rollout is
      scaled by the random total length of its batch, so batches of long completions step less.
      "sequence_mean": mean over tokens, then over rollouts; biased, since a rollout's weight falls
      as 1/length: long wrong answers are punished less, long right ones reinforced less.
    kl_coefficient: weight of the KL to the frozen reference, per unit of the aggregation
      (token_sum: nats a completion). 0 needs no reference and no forward pass for it.
    kl_target: KL to the reference that a run is steered to, nats a completion: the coefficient
      then starts at kl_coefficient and follows the measured KL, so that every rule ends at the same
      distance from the base. None leaves it as it is.
    kl_estimator: of one token's KL from its sampled token, d = log ref - log policy. "k1": -d,
      unbiased, noisy. "k2": d^2 / 2, biased in value, right in gradient. "k3": exp(d) - 1 - d,
      unbiased, never negative.
    kl_placement: "loss" adds the estimate to the loss. "reward" subtracts
      kl_coefficient * sum_t k1 from each rollout's reward before the advantages: the exact
      trajectory gradient, but the tail rules then rank penalised rewards; k1 only.
    kl_gradient: of the KL in the loss. "token": each token's own KL, its prefix held fixed (k1 and
      k3 are multiplied by the differentiable ratio). "trajectory": adds what a token does to the KL
      of later tokens; exact, but its variance grows with length. "estimator": differentiates the
      estimate as it stands, as many trainers do; k3 then follows another divergence (biased) and
      k1 has zero expected gradient, which is refused.
    measure_kl: log the KL even where kl_coefficient is 0 (costs a forward pass of the reference).
    clip_epsilon_low: PPO's lower clip: ratios below 1 - this stop pushing down. Active from the
      second update on a batch (updates_per_batch > 1); None for no clipping, which is unbiased.
    clip_epsilon_high: PPO's upper clip, ratios above 1 + this stop pushing up.
    importance_ratio: of several updates per batch. "token": each token's own ratio (PPO); biased,
      ignores that the prefix has changed too. "sequence": the whole completion's ratio; unbiased
      without clipping, noisier.
    importance_cap: multiply each term by min(trainer / sampler probability, this), which corrects
      for a sampler that computes other log-probabilities than the trainer, each token for itself:
      what is left is the mismatch of its prefix, and what is capped. None for no correction.
    entropy_coefficient: weight of the tokens' entropy added to the objective, aggregated like its
      other terms (token_sum: nats a completion); biases the optimum towards higher entropy.
    truncated_rollouts: cut at max_completion_length. "keep" them; "mask" them out of loss and
      group; or "penalise": subtract truncation_penalty from their reward.
    truncation_penalty: in units of reward, for "penalise".
  """

  aggregation: Aggregation = "token_sum"
  kl_coefficient: float = 0.0
  kl_target: float | None = None
  kl_estimator: KLEstimator = "k3"
  kl_placement: Literal["loss", "reward"] = "loss"
  kl_gradient: KLGradient = "token"
  measure_kl: bool = False
  clip_epsilon_low: float | None = None
  clip_epsilon_high: float | None = None
  importance_ratio: Literal["token", "sequence"] = "token"
  importance_cap: float | None = None
  entropy_coefficient: float = 0.0
  truncated_rollouts: Literal["keep", "mask", "penalise"] = "keep"
  truncation_penalty: float = 0.0

  def __post_init__(self) -> None:
    check_fields(self, "objective")
    require(self.kl_coefficient >= 0, f"kl_coefficient={self.kl_coefficient} must be >= 0.")
    require(
      self.kl_target is None or 0 < self.kl_target < float("inf"),
      f"kl_target={self.kl_target} must be positive nats a completion, or None.",
    )
    require(
      self.kl_target is None or self.kl_coefficient > 0,
      f"kl_target={self.kl_target} needs a kl_coefficient > 0 to start from.",
    )
    if self.kl_placement == "reward":
      require(
        self.kl_estimator == "k1",
        f'kl_estimator="{self.kl_estimator}" does not suit kl_placement="reward": only k1 has the '
        'right expected gradient there; set kl_estimator="k1".',
      )
      require(
        self.kl_gradient == "token",
        f'kl_gradient="{self.kl_gradient}" has no effect with kl_placement="reward", whose '
        'gradient is that of the trajectory; leave it at "token".',
      )
    elif self.kl_coefficient > 0:
      require(
        (self.kl_estimator, self.kl_gradient) != ("k1", "estimator"),
        'kl_estimator="k1" with kl_gradient="estimator" has zero expected gradient; use '
        'kl_gradient="token" or kl_placement="reward".',
      )
      require(
        (self.kl_estimator, self.kl_gradient) != ("k2", "trajectory"),
        'kl_estimator="k2" is not an unbiased KL, so it has no kl_gradient="trajectory"; use k1 or '
        "k3.",
      )
    for name in ("clip_epsilon_low", "clip_epsilon_high"):
      value = getattr(self, name)
      require(value is None or value > 0, f"{name}={value} must be positive, or None for no clip.")
    low = self.clip_epsilon_low
    require(low is None or low < 1, f"clip_epsilon_low={low} must be below 1.")
    require(
      self.importance_cap is None or self.importance_cap > 0,
      f"importance_cap={self.importance_cap} must be positive, or None for no correction.",
    )
    require(
      0 <= self.entropy_coefficient < float("inf"),
      f"entropy_coefficient={self.entropy_coefficient} must be >= 0 and finite.",
    )
    require(
      0 <= self.truncation_penalty < float("inf"),
      f"truncation_penalty={self.truncation_penalty} must be >= 0 and finite.",
    )
    require(
      self.truncated_rollouts == "penalise" or self.truncation_penalty == 0,
      f"truncation_penalty={self.truncation_penalty} has no effect with "
      f'truncated_rollouts="{self.truncated_rollouts}"; use "penalise".',
    )

  @property
  def needs_reference(self) -> bool:
    """Whether log-probabilities of the reference are computed at all."""
    return self.kl_coefficient > 0 or self.measure_kl
