"""One flat set of flags for all rules: what a run's configuration holds.

One flag changes the rule: `--advantage.name tea --advantage.budget 64`. Each field's docstring is
the help text of its flag.
"""

from __future__ import annotations

import ast
import dataclasses
from typing import Any, Literal

from tea_jax.advantages.registry import make_advantage
from tea_jax.advantages.rule import GroupRule


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
