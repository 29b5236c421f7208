"""Dataclasses for flags, one for each rule: `TeaConfig(budget=64).build()` makes the rule.

Each field's docstring is the help text of its flag. `flags` has one flat set for all rules.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

from tea_jax.advantages.registry import make_advantage
from tea_jax.advantages.rule import GroupRule


@dataclasses.dataclass(frozen=True)
class _Config:
  name: ClassVar[str]

  def build(self) -> GroupRule:
    """The rule with these arguments."""
    return make_advantage(
      self.name, **{f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
    )


@dataclasses.dataclass(frozen=True)
class _Standardization(_Config):
  ddof: int = 0
  """Standard deviation of the group: 0 population, 1 sample."""
  epsilon: float = 1e-8
  """Added to the standard deviation, in units of reward."""


@dataclasses.dataclass(frozen=True)
class _Tail(_Config):
  tail_fraction: float = 0.25
  """Upper share of the group that is taken as tail; in (0, 0.5]."""
  budget: int = 128
  """Rollouts at deployment of which the best is kept (N)."""
  scale_floor: float = 1e-12
  """Smallest standard deviation of the tail, in units of reward."""


@dataclasses.dataclass(frozen=True)
class TeaConfig(_Tail):
  """Tail-extrapolated advantage."""

  name: ClassVar[str] = "tea"
  positive_part: bool = True
  """Take relu of the shaped reward."""


@dataclasses.dataclass(frozen=True)
class PrefixTeaConfig(_Tail):
  """TEA over nested prefixes of the group, bias cancelled."""

  name: ClassVar[str] = "prefix_tea"
  positive_part: bool = True
  """Take relu of the shaped reward."""
  order: int = 2
  """Powers of 1/m that are cancelled in the bias."""
  fractions: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
  """Shares of the group that the prefixes take, increasing."""
  objective: Literal["norm", "variance"] = "norm"
  """What the weights of the prefixes minimise."""
  shuffle: bool = True
  """Order each group at random first."""


@dataclasses.dataclass(frozen=True)
class SubsetTeaConfig(_Tail):
  """Prefix-TEA averaged over random orders of the group."""

  name: ClassVar[str] = "subset_tea"
  positive_part: bool = True
  """Take relu of the shaped reward."""
  order: int = 1
  """Powers of 1/m that are cancelled in the bias."""
  fractions: tuple[float, ...] = (0.5, 1.0)
  """Shares of the group that the subsets take, increasing."""
  num_orders: int = 16
  """Random orders that are averaged."""
  objective: Literal["norm", "variance"] = "norm"
  """What the weights of the subsets minimise."""


@dataclasses.dataclass(frozen=True)
class TailInfluenceConfig(_Tail):
  """Influence on the expected best of N, under the group's fitted tail."""

  name: ClassVar[str] = "tail_influence"


@dataclasses.dataclass(frozen=True)
class BlendedInfluenceConfig(_Config):
  """Influence on the expected best of N, averaged over three laws fitted to the group."""

  name: ClassVar[str] = "blended_influence"
  budget: int = 128
  """Rollouts at deployment of which the best is kept (N)."""
  tail_fraction: float = 0.5
  """Upper share of the group that the tail's law is fitted to; in (0, 0.5]."""
  resampling_weight: float = 0.5
  """Share of the bootstrap, the rest are Gaussians; in [0, 1]."""
  scale_floor: float = 1e-12
  """Smallest standard deviation of the Gaussians, in units of reward."""


@dataclasses.dataclass(frozen=True)
class GrpoConfig(_Standardization):
  """Reward minus the group's mean."""

  name: ClassVar[str] = "grpo"
  normalize: bool = False
  """Divide by the group's standard deviation (GRPO-Z)."""


@dataclasses.dataclass(frozen=True)
class RlooConfig(_Config):
  """Reward minus the mean of the other rollouts."""

  name: ClassVar[str] = "rloo"


@dataclasses.dataclass(frozen=True)
class BonMaxMeanConfig(_Config):
  """The best rollout against the group's mean."""

  name: ClassVar[str] = "bon_max_mean"


@dataclasses.dataclass(frozen=True)
class BonMaxSecondConfig(_Config):
  """The best rollout against the second best."""

  name: ClassVar[str] = "bon_max_second"


@dataclasses.dataclass(frozen=True)
class MaxAtKConfig(_Standardization):
  """Best of k <= m, averaged over all subsets of the group."""

  name: ClassVar[str] = "max_at_k"
  k: int | None = None
  """Size of the subsets; half the group by default."""
  normalize: bool = True
  """Standardise the transformed rewards over the group."""
  leave_one_out: bool = False
  """Subtract from each subset's maximum that of the subset without the rollout."""


@dataclasses.dataclass(frozen=True)
class BonRlConfig(_Config):
  """Policy gradient of the best-of-n policy, from a random split of the group."""

  name: ClassVar[str] = "bon_rl"
  selection_size: int | None = None
  """Rollouts of which the best is selected; half the group by default."""
  coefficient: Literal["kl", "n-1"] | float = "kl"
  """Weight of the correction: matched by KL divergence, n - 1, or a number."""
  baseline: Literal["mean"] | float = "mean"
  """The group's mean, or a number."""
  shuffle: bool = True
  """Split at random; without, the first rollouts select."""


@dataclasses.dataclass(frozen=True)
class _Aligned(_Standardization):
  normalize: bool = True
  """Divide the advantage by the group's standard deviation."""
  silence_penalty: float = 0.0
  """Taken from every advantage of a group whose rewards are all 0 (0.5 in the paper)."""


@dataclasses.dataclass(frozen=True)
class CatBestOfNConfig(_Aligned):
  """Compute-aligned weights for best-of-N."""

  name: ClassVar[str] = "cat_best_of_n"
  budget: int = 128
  """Rollouts at deployment of which the best is kept (N)."""
  quantile: Literal["strict", "rank", "laplace", "tracked"] = "strict"
  """Share of rewards below: c/m, (c+1)/(m+1), (c+1)/(m+2), or over recent steps."""
  weight_clip: float | None = None
  """Largest weight, before it is divided by the mean."""
  weight_normalization: Literal["none", "group", "batch"] = "group"
  """Over what weights are divided by their mean."""
  buffer_capacity: int = 4000
  """Rewards kept for tracked quantiles."""
  decay: float = 1.0
  """Weight of a tracked reward for each step of age."""
  smoothing: float = 1.0
  """Pseudo-count of tracked quantiles."""


@dataclasses.dataclass(frozen=True)
class CatPassAtNConfig(_Aligned):
  """Compute-aligned weights for Pass@N."""

  name: ClassVar[str] = "cat_pass_at_n"
  budget: int = 128
  """Rollouts at deployment of which one must be right (N)."""
  probability: Literal["sequence", "group"] = "sequence"
  """Success probability: of each completion, or the share of correct rollouts."""
  log_weighted: bool = True
  """Weights of log S (bounded by 1) instead of S."""
  laplace: float = 1.0
  """Pseudo-count of the share of correct rollouts."""
  success_threshold: float = 0.5
  """Rewards above it are correct."""
  weight_clip: float | None = 50.0
  """Largest weight, before it is divided by the mean."""
  weight_normalization: Literal["none", "group", "batch"] = "none"
  """Over what weights are divided by their mean."""


@dataclasses.dataclass(frozen=True)
class CatMajorityConfig(_Aligned):
  """Compute-aligned weights for majority voting."""

  name: ClassVar[str] = "cat_majority"
  budget: int = 8
  """Votes at deployment (N)."""
  threshold: Literal["dynamic", "tracked"] | int = "dynamic"
  """Votes that win: from the group's answers, their moving average, or a number."""
  log_weighted: bool = False
  """Weights of log S instead of S."""
  laplace: float = 1.0
  """Pseudo-count of the share of correct rollouts."""
  success_threshold: float = 0.5
  """Rewards above it are correct."""
  weight_clip: float | None = 10.0
  """Largest weight, before it is divided by the mean."""
  weight_normalization: Literal["none", "group", "batch"] = "batch"
  """Over what weights are divided by their mean."""
  decay: float = 0.9
  """Of the moving average."""


@dataclasses.dataclass(frozen=True)
class BestOfNOracleConfig(_Config):
  """Exact best-of-N advantage of a large pool."""

  name: ClassVar[str] = "best_of_n_oracle"
  budget: int = 128
  """Draws of which the best is kept (N)."""
  scaled: bool = True
  """Multiply by N, which makes it the exact gradient."""


AdvantageConfig = (
  TeaConfig
  | PrefixTeaConfig
  | SubsetTeaConfig
  | TailInfluenceConfig
  | BlendedInfluenceConfig
  | GrpoConfig
  | RlooConfig
  | BonMaxMeanConfig
  | BonMaxSecondConfig
  | MaxAtKConfig
  | BonRlConfig
  | CatBestOfNConfig
  | CatPassAtNConfig
  | CatMajorityConfig
  | BestOfNOracleConfig
)
"""Any rule's configuration: a tyro union gives a subcommand for each."""
