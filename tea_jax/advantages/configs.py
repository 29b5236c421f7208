"""Dataclasses for flags: one for each rule, and one flat set of flags for all of them.

Each field's docstring is the help text of its flag. `TeaConfig(budget=64).build()` makes the rule;
`AdvantageFlags` is what a run's configuration holds, so that one flag changes the rule:

  --advantage.name tea --advantage.budget 64
"""

from __future__ import annotations

import ast
import dataclasses
from typing import Any, ClassVar, Literal

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


@dataclasses.dataclass(frozen=True, repr=False)
class AdvantageFlags:
  """An advantage rule by name, and those of its arguments that differ from its defaults.

  Flat, so that it is the same as flags, as YAML and in a printed configuration. An argument that
  the named rule does not have is an error, which lists those that it has.
  """

  name: str = "tea"
  """Advantage rule; `tea_jax.available_advantages()` lists them."""
  tail_fraction: float | None = None
  """Upper share of the group taken as tail, in (0, 0.5]. Rules: tea family, blended_influence."""
  budget: int | None = None
  """Rollouts at deployment (N). Rules: tea family, cat_*, best_of_n_oracle."""
  positive_part: bool | None = None
  """Take relu of the shaped reward. Rules: tea, prefix_tea, subset_tea."""
  scale_floor: float | None = None
  """Smallest standard deviation of the tail, in units of reward. Rules: tea family."""
  resampling_weight: float | None = None
  """Share of the bootstrap, in [0, 1]. Rules: blended_influence."""
  order: int | None = None
  """Powers of 1/m cancelled in the bias. Rules: prefix_tea, subset_tea."""
  fractions: tuple[float, ...] | None = None
  """Shares of the group in prefixes or subsets, increasing. Rules: prefix_tea, subset_tea."""
  objective: Literal["norm", "variance"] | None = None
  """What the prefixes' weights minimise. Rules: prefix_tea, subset_tea."""
  num_orders: int | None = None
  """Random orders that are averaged. Rules: subset_tea."""
  shuffle: bool | None = None
  """Order or split the group at random. Rules: prefix_tea, bon_rl."""
  normalize: bool | None = None
  """Divide by the group's standard deviation. Rules: grpo, max_at_k, cat_*."""
  ddof: int | None = None
  """Standard deviation: 0 population, 1 sample. Rules: grpo, max_at_k, cat_*."""
  epsilon: float | None = None
  """Added to the standard deviation. Rules: grpo, max_at_k, cat_*."""
  k: int | None = None
  """Size of the subsets of which the best counts. Rules: max_at_k."""
  leave_one_out: bool | None = None
  """Subtract each subset's maximum without the rollout. Rules: max_at_k."""
  selection_size: int | None = None
  """Rollouts of which the best is selected. Rules: bon_rl."""
  coefficient: Literal["kl", "n-1"] | float | None = None
  """Weight of the correction. Rules: bon_rl."""
  baseline: Literal["mean"] | float | None = None
  """The group's mean, or a number. Rules: bon_rl."""
  quantile: Literal["strict", "rank", "laplace", "tracked"] | None = None
  """How the share of rewards below is estimated. Rules: cat_best_of_n."""
  probability: Literal["sequence", "group"] | None = None
  """Success probability of each completion or of the group. Rules: cat_pass_at_n."""
  threshold: Literal["dynamic", "tracked"] | int | None = None
  """Votes that win. Rules: cat_majority."""
  log_weighted: bool | None = None
  """Weights of log S instead of S. Rules: cat_pass_at_n, cat_majority."""
  laplace: float | None = None
  """Pseudo-count of the share of correct rollouts. Rules: cat_pass_at_n, cat_majority."""
  success_threshold: float | None = None
  """Rewards above it are correct. Rules: cat_pass_at_n, cat_majority."""
  weight_clip: float | None = None
  """Largest weight, before it is divided by the mean; inf for no bound. Rules: cat_*."""
  weight_normalization: Literal["none", "group", "batch"] | None = None
  """Over what weights are divided by their mean. Rules: cat_*."""
  silence_penalty: float | None = None
  """Taken from every advantage of a group without any reward. Rules: cat_*."""
  buffer_capacity: int | None = None
  """Rewards kept for tracked quantiles. Rules: cat_best_of_n."""
  decay: float | None = None
  """Of tracked statistics. Rules: cat_best_of_n, cat_majority."""
  smoothing: float | None = None
  """Pseudo-count of tracked quantiles. Rules: cat_best_of_n."""
  scaled: bool | None = None
  """Multiply by N. Rules: best_of_n_oracle."""
  options: tuple[str, ...] = ()
  """Further arguments as name=value, for rules registered elsewhere."""

  def __repr__(self) -> str:
    given = ", ".join(f"{k}={v!r}" for k, v in {"name": self.name, **self.arguments()}.items())
    return f"AdvantageFlags({given})"

  def arguments(self) -> dict[str, Any]:
    """The arguments that were set.

    Raises:
      ValueError: if an option is not of the form name=value.
    """
    named = ("name", "options")
    given = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in named}
    arguments = {name: value for name, value in given.items() if value is not None}
    for option in self.options:
      name, separator, text = option.partition("=")
      if not separator or not name.isidentifier():
        raise ValueError(f"option {option!r} must have the form name=value")
      try:
        arguments[name] = ast.literal_eval(text)
      except (ValueError, SyntaxError):
        arguments[name] = text
    return arguments

  def build(self) -> GroupRule:
    """The named rule.

    Raises:
      ValueError: for an unknown name or argument, or values that the rule refuses.
    """
    return make_advantage(self.name, **self.arguments())
