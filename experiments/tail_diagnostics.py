"""Are upper reward tails Gaussian? `python -m experiments.tail_diagnostics label=folder ...`

Reads stored records (of `experiments.evaluate` or `experiments.compare`) and writes the QQ
linearity table of arXiv 2605.10716 (Table 14) beside the published rows and exactly Gaussian
rewards of the same size, the QQ figure, the reward distribution, and how well the tail fitted to
some completions predicts best-of-N on the others.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from typing import Annotated

import jax.numpy as jnp
import numpy as np
import tyro

from experiments import command
from tea_jax.evaluation import best_of_n_exact, plots, prompt_bootstrap
from tea_jax.evaluation.qq_linearity import gaussian_reference, qq_linearity
from tea_jax.evaluation.records import Records, read_records
from tea_jax.evaluation.report_tables import markdown_table
from tea_jax.runtime.files import write_text
from tea_jax.tail import best_of_n_value, minimum_budget, tail_vector

# Median, mean, 10th percentile of R^2, share at or above 0.95, in percent.
PUBLISHED = {
  "Base model": (0.980, 0.962, 0.931, 82.0),
  "GRPO": (0.980, 0.963, 0.937, 85.4),
  "Prefix-TEA": (0.982, 0.966, 0.936, 85.8),
  "TEA": (0.980, 0.966, 0.939, 86.0),
}


@dataclasses.dataclass(frozen=True)
class Flags:
  """What is diagnosed.

  Attributes:
    records: folders with records, each `label=folder` or `folder`.
    output: folder of tail.md and the figures.
    lowest, highest, points: grid of upper quantiles in the QQ fit.
    threshold: R^2 that counts as linear.
    tail_fraction: alpha of the fitted tail in the prediction of best-of-N.
    num_fitted: completions that the tail is fitted to; the rest is what is predicted.
    figures: draw figures (needs matplotlib).
  """

  records: Annotated[tuple[str, ...], tyro.conf.Positional]
  output: str = "runs/tail"
  lowest: float = 0.80
  highest: float = 0.99
  points: int = 20
  threshold: float = 0.95
  tail_fraction: float = 0.25
  num_fitted: int = 32
  figures: bool = True


def scored(label: str, records: Records) -> np.ndarray:
  """Rewards of the prompts whose completions were all scored; says how many are left out."""
  kept = ~np.isnan(records.rewards).any(axis=1)
  if not kept.all():
    print(f"{label}: {(~kept).sum()} prompts are left out, a completion was not scored")
  return records.rewards[kept]


def qq_rows(rewards: dict[str, np.ndarray], flags: Flags) -> list[list[str]]:
  """Rows of the QQ table: ours, Gaussian rewards of the same size, the published ones."""
  levels = np.linspace(flags.lowest, flags.highest, flags.points)
  size = next(iter(rewards.values())).shape[1]
  rows = []
  for name, table in {**rewards, "exactly Gaussian": gaussian_reference(2000, size)}.items():
    fit = qq_linearity(table, levels, threshold=flags.threshold)
    summary = fit.summary()
    numbers = [f"{summary[key]:.3f}" for key in ("median", "mean", "p10")]
    share = f"{100 * summary['share']:.1f} %"
    rows.append([name, *numbers, share, str(len(table)), str(fit.num_constant)])
  for name, (*numbers, share) in PUBLISHED.items():
    rows.append([f"published: {name}", *(f"{v:.3f}" for v in numbers), f"{share} %", "500", ""])
  return rows


def prediction_rows(rewards: dict[str, np.ndarray], flags: Flags) -> list[list[str]]:
  """Best-of-N predicted from the first completions against the exact value of the others."""
  rows = []
  for name, table in rewards.items():
    fitted, held_out = table[:, : flags.num_fitted], table[:, flags.num_fitted :]
    tail = tail_vector(jnp.asarray(fitted), tail_fraction=flags.tail_fraction)
    budget = 2 ** int(np.ceil(np.log2(minimum_budget(flags.tail_fraction) + 1)))
    while budget <= held_out.shape[1]:
      predicted = best_of_n_value(tail, tail_fraction=flags.tail_fraction, budget=budget)
      error = np.asarray(predicted, np.float64) - best_of_n_exact(held_out, [budget])[:, 0]
      actual = best_of_n_exact(held_out, [budget]).mean()
      rmse = np.sqrt(np.mean(error**2))
      rows.append([name, str(budget), f"{actual:.3f}", f"{prompt_bootstrap(error)}", f"{rmse:.3f}"])
      budget *= 2
  return rows


def main(arguments: list[str] | None = None) -> int:
  flags = tyro.cli(Flags, args=arguments, description=__doc__)
  return command.run(lambda: work(flags))


def work(flags: Flags) -> None:
  out = pathlib.Path(flags.output)
  rewards = {
    label: scored(label, read_records(folder))
    for label, folder in command.labelled(flags.records).items()
  }
  if not rewards:
    raise ValueError("name at least one folder of records, e.g. base=runs/evaluation/records/base")
  smallest = min(table.shape[1] for table in rewards.values())
  if not 8 <= flags.num_fitted < smallest:
    raise ValueError(
      f"num_fitted={flags.num_fitted} must be at least 8 and below the {smallest} completions"
    )
  header = [
    "rewards",
    "median R²",
    "mean",
    "p10",
    f"R² ≥ {flags.threshold}",
    "prompts",
    "constant",
  ]
  sections = ["# Upper reward tails", markdown_table(header, qq_rows(rewards, flags))]
  header = ["rewards", "N", "best-of-N", "prediction error [95 %]", "RMSE over prompts"]
  sections += [
    f"## Best-of-N predicted from {flags.num_fitted} completions",
    markdown_table(header, prediction_rows(rewards, flags)),
  ]
  out.mkdir(parents=True, exist_ok=True)
  if flags.figures:
    levels = np.linspace(flags.lowest, flags.highest, flags.points)
    plots.qq_figure(out / "qq.png", rewards, probabilities=levels)
    plots.reward_distribution_figure(out / "reward_distribution.png", rewards)
    sections += ["![QQ plot](qq.png)", "![Reward distribution](reward_distribution.png)"]
  text = "\n\n".join(sections) + "\n"
  write_text(out / "tail.md", text)
  print(text)


if __name__ == "__main__":
  sys.exit(main())
