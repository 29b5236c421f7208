"""Tables of a report, in Markdown: frontiers, differences, runs, rates, rewards, tails, samples."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

import numpy as np

from tea_jax.evaluation.bootstrap import Interval
from tea_jax.evaluation.comparison import Comparison, Runs
from tea_jax.evaluation.qq_linearity import gaussian_reference, qq_linearity
from tea_jax.evaluation.records import Records


def frontier_table(comparison: Comparison) -> str:
  """Mean best-of-N reward of each method and budget, with the mean length in tokens."""
  header = ["method", *(f"bo{budget}" for budget in comparison.budgets), "length"]
  rows = []
  for name in comparison.values:
    mean = comparison.frontier(name).estimate
    rows.append([name, *(f"{v:.3f}" for v in mean), f"{comparison.mean_lengths[name]:.1f}"])
  return markdown_table(header, rows)


def difference_table(comparison: Comparison, baseline: str) -> str:
  """Paired differences to a baseline with their 95 % intervals; bold where they exclude 0."""
  header = ["method", *(f"bo{budget}" for budget in comparison.budgets)]
  rows = []
  for name in comparison.values:
    if name != baseline:
      interval = comparison.difference(name, baseline)
      rows.append([name, *(_cell(interval[k]) for k in range(len(comparison.budgets)))])
  return markdown_table(header, rows)


def gain_table(comparison: Comparison, base: str) -> str:
  """Gain over the base at the largest budget: how much is shift of the mean, how much widening.

  Empty if there is nothing but the base, or no budget 1.
  """
  rows = []
  for name in comparison.values:
    parts = None if name == base else comparison.shift_and_widening(name, base)
    if parts is not None:
      gain = comparison.difference(name, base)[len(comparison.budgets) - 1]
      rows.append([name, _cell(gain), *map(_cell, parts)])
  header = ["method", f"gain at bo{comparison.budgets[-1]}", "shift of the mean", "widening"]
  return markdown_table(header, rows) if rows else ""


def seeds_table(comparison: Comparison, baseline: str) -> str:
  """Paired differences of each trained run, and their mean with its interval over runs.

  Empty if no method but the baseline has several runs.
  """
  header = ["run", *(f"bo{budget}" for budget in comparison.budgets)]
  rows = []
  for name, values in comparison.values.items():
    if name == baseline or len(values) == 1:
      continue
    runs = comparison.seed_differences(name, baseline)
    rows += [[f"{name}, {s + 1}", *(f"{v:+.3f}" for v in run)] for s, run in enumerate(runs)]
    mean = comparison.difference_over_seeds(name, baseline)
    rows.append([f"{name}, mean", *(_cell(mean[k]) for k in range(len(comparison.budgets)))])
  return markdown_table(header, rows) if rows else ""


def rates_table(comparison: Comparison, baseline: str) -> str:
  """Win / tie / loss rates against a baseline."""
  header = ["method", *(f"bo{budget}" for budget in comparison.budgets)]
  rows = [
    [name, *map(str, comparison.rates(name, baseline))]
    for name in comparison.values
    if name != baseline
  ]
  return markdown_table(header, rows)


def rewards_table(runs: Runs) -> str:
  """Mean, spread and quantiles of the pooled rewards; lengths; completions cut at the limit."""
  header = ["method", "mean", "std in prompt", "median", "99 %", "max", "length", "cut", "distinct"]
  rows = []
  for name, group in runs.items():
    rewards = np.stack([records.rewards for records in group])
    pooled = rewards[~np.isnan(rewards)]
    length = np.mean([records.mean_length for records in group])
    cut = 1 - np.mean([records.samples.finished.mean() for records in group])
    rows.append(
      [
        name,
        *(f"{v:.3f}" for v in (pooled.mean(), np.nanstd(rewards, axis=-1).mean())),
        *(f"{v:.3f}" for v in (*np.quantile(pooled, [0.5, 0.99]), pooled.max())),
        f"{length:.1f}",
        f"{100 * cut:.0f} %",
        f"{100 * np.mean([_distinct_share(records) for records in group]):.0f} %",
      ]
    )
  return markdown_table(header, rows)


def qq_table(runs: Runs) -> str:
  """QQ linearity of each method's upper tails beside that of normal rewards of the same size."""
  first = next(iter(runs.values()))[0]
  rewards = {
    name: np.concatenate([records.rewards for records in group]) for name, group in runs.items()
  }
  rewards["(exactly Gaussian)"] = gaussian_reference(2000, first.num_samples)
  rows = []
  for name, values in rewards.items():
    fit = qq_linearity(values)
    summary = fit.summary()
    rows.append(
      [
        name,
        *(f"{summary[key]:.3f}" for key in ("median", "mean", "p10")),
        f"{100 * summary['share']:.1f} %",
        str(fit.num_constant),
      ]
    )
  header = ["method", "median R²", "mean", "p10", "share R² ≥ 0.95", "constant tails"]
  return markdown_table(header, rows)


def samples_section(runs: Runs, num_prompts: int) -> str:
  """For a few prompts, evenly spaced: each method's first completion and its best one."""
  first = next(iter(runs.values()))[0]
  chosen = np.unique(
    np.linspace(0, len(first.prompts) - 1, min(num_prompts, len(first.prompts))).astype(int)
  )
  blocks = []
  for prompt in chosen:
    lines = [f"**{inline(first.prompts[prompt])}**", ""]
    for name, group in runs.items():
      records = group[0]
      rewards = records.rewards[prompt]
      best = int(np.nanargmax(rewards)) if not np.isnan(rewards).all() else 0
      for label, rollout in (("first", 0), (f"best of {records.num_samples}", best)):
        text = inline(records.samples.completions[prompt][rollout])
        lines.append(f"- {name}, {label} ({rewards[rollout]:+.2f}): {text}")
    blocks.append("\n".join(lines))
  return "\n\n".join(blocks)


def per_prompt_csv(comparison: Comparison) -> str:
  """A line for each prompt: values of every method and budget, averaged over seeds."""
  file = io.StringIO()
  writer = csv.writer(file, lineterminator="\n")
  names = [f"{name} bo{budget}" for name in comparison.values for budget in comparison.budgets]
  writer.writerow(["prompt", *names])
  values = np.concatenate([table.mean(axis=0) for table in comparison.values.values()], axis=1)
  for prompt, row in zip(comparison.prompts, values):
    # A spreadsheet would take a text that begins so for a formula.
    safe = f"'{prompt}" if prompt.lstrip().startswith(("=", "+", "-", "@")) else prompt
    writer.writerow([safe, *(f"{value:.6f}" for value in row)])
  return file.getvalue()


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """A table in Markdown."""
  lines = [header, ["---"] * len(header), *rows]
  return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _cell(interval: Interval) -> str:
  text = f"{interval:+.3f}"
  return f"**{text}**" if interval.excludes_zero else text


def _distinct_share(records: Records) -> float:
  shares = [len(set(row)) / len(row) for row in records.samples.completions]
  return float(np.mean(shares))


def inline(text: str, limit: int = 300) -> str:
  """Text on one line that Markdown does not interpret."""
  text = " ".join(text.split())
  text = text if len(text) <= limit else text[: limit - 1] + "…"
  for character in "\\`*_|<[#":
    text = text.replace(character, f"\\{character}")
  return text
