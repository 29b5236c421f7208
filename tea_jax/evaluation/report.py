"""report.md: what a comparison found, with intervals, figures and samples, from stored records."""

from __future__ import annotations

import csv
import io
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tea_jax.evaluation import plots
from tea_jax.evaluation.answers import accuracy_rows, is_checkable
from tea_jax.evaluation.bootstrap import Interval
from tea_jax.evaluation.comparison import (
  Comparison,
  Runs,
  compare_runs,
  leave_out_unscored,
)
from tea_jax.evaluation.diagnostics import gaussian_reference, qq_linearity
from tea_jax.evaluation.records import Records
from tea_jax.files import write_text

_METHODS = """\
Intervals are 95 % percentile bootstraps over prompts ({resamples}); differences are paired by
prompt. "Exact" is the unbiased order-statistic estimator over all subsets of the {n} completions of
a prompt; "grouped" is the papers' mean of maxima over consecutive groups. Neighbouring budgets are
strongly correlated. A difference counts as shown when its interval excludes 0 (bold)."""
_RATES = "Win / tie / loss over prompts and seeds, % against {}:"
_UNSCORED = "{} prompts are left out everywhere: a completion of theirs was not scored."


def write_report(
  folder: str | os.PathLike[str],
  runs: Runs,
  *,
  baselines: Sequence[str],
  title: str,
  settings: Mapping[str, Any] | None = None,
  notes: Sequence[str] = (),
  budgets: Sequence[int] | None = None,
  figures: bool = True,
  num_sample_prompts: int = 4,
) -> pathlib.Path:
  """Writes report.md, results.json, per_prompt.csv and the figures into a folder.

  Args:
    folder: of the report; existing files are replaced whole.
    runs: method -> records of its seeds; the untrained policy is usually called "base".
    baselines: methods that the others are compared with, the most important first.
    title: heading.
    settings: shown as a table.
    notes: paragraphs below the settings, e.g. training times.
    budgets: N of the tables; by default powers of two up to n.
    figures: False leaves them out (they need matplotlib).
    num_sample_prompts: prompts shown with completions of every method.

  Returns:
    Path of report.md.
  """
  for name in baselines:
    if name not in runs:
      raise ValueError(f"baseline '{name}' was not evaluated; there are {', '.join(runs)}")
  if len(runs) == 1:
    baselines = ()  # nothing to compare with
  target = pathlib.Path(folder)
  target.mkdir(parents=True, exist_ok=True)
  runs, num_unscored = leave_out_unscored(runs)
  if num_unscored:
    notes = [*notes, _UNSCORED.format(num_unscored)]
  exact = compare_runs(runs, budgets=budgets)
  dividing = [budget for budget in exact.budgets if exact.num_samples % budget == 0]
  sections = [f"# {title}", _settings_table(settings or {}), *notes]
  sections += [_headline(exact, name) for name in baselines[:1]]
  if figures:
    _draw(target, runs, exact, baselines)
    sections.append("![Best-of-N frontier](frontier.png)")
  sections += ["## Best-of-N reward (exact estimator)", frontier_table(exact)]
  for name in baselines:
    sections += [f"## Paired difference to {name}", difference_table(exact, name)]
    sections += [_RATES.format(name), rates_table(exact, name)]
  if dividing:
    grouped = compare_runs(runs, budgets=dividing, method="grouped")
    sections += ["## Best-of-N reward (grouped, as in the papers)", frontier_table(grouped)]
    for name in baselines[:1]:
      sections += [difference_table(grouped, name), _RATES.format(name), rates_table(grouped, name)]
  if is_checkable(runs):
    header = ["method", "metric", *(f"k = {budget}" for budget in exact.budgets)]
    rows = accuracy_rows(runs, exact.budgets)
    sections += ["## Correct answers, %", markdown_table(header, rows)]
  sections += ["## Rewards and lengths", rewards_table(runs)]
  if figures:
    sections.append("![Reward distribution](reward_distribution.png)")
  sections += ["## Is the upper tail Gaussian?", qq_table(runs)]
  sections += ["## Samples", samples_section(runs, num_sample_prompts)]
  sections += [
    "## Method",
    _METHODS.format(n=exact.num_samples, resamples="1,000 resamples"),
    "Values of every prompt: [per_prompt.csv](per_prompt.csv); numbers of the tables: "
    "[results.json](results.json).",
  ]
  write_text(target / "results.json", json.dumps(_results(exact, baselines), indent=2) + "\n")
  write_text(target / "per_prompt.csv", per_prompt_csv(exact))
  report = target / "report.md"
  write_text(report, "\n\n".join(section for section in sections if section) + "\n")
  return report


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
    lines = [f"**{_inline(first.prompts[prompt])}**", ""]
    for name, group in runs.items():
      records = group[0]
      rewards = records.rewards[prompt]
      best = int(np.nanargmax(rewards)) if not np.isnan(rewards).all() else 0
      for label, rollout in (("first", 0), (f"best of {records.num_samples}", best)):
        text = _inline(records.samples.completions[prompt][rollout])
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
    writer.writerow([prompt, *(f"{value:.6f}" for value in row)])
  return file.getvalue()


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """A table in Markdown."""
  lines = [header, ["---"] * len(header), *rows]
  return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _headline(comparison: Comparison, baseline: str) -> str:
  lines = []
  for name in comparison.values:
    if name in (baseline, "base"):
      continue
    interval = comparison.difference(name, baseline)
    found = []
    for k in range(len(comparison.budgets))[-2:]:
      verdict = "shown" if interval[k].excludes_zero else "not shown"
      found.append(f"bo{comparison.budgets[k]} {interval[k]:+.3f} ({verdict})")
    seeds = len(comparison.values[name])
    lines.append(
      f"- **{name} − {baseline}**: {', '.join(found)}; {len(comparison.prompts)} held-out prompts, "
      f"{comparison.num_samples} completions each, {seeds} seed{'s' if seeds > 1 else ''}."
    )
  return "\n".join(lines)


def _cell(interval: Interval) -> str:
  text = f"{interval:+.3f}"
  return f"**{text}**" if interval.excludes_zero else text


def _draw(
  target: pathlib.Path, runs: Runs, comparison: Comparison, baselines: Sequence[str]
) -> None:
  baseline = baselines[0] if baselines else None
  differences = {
    name: comparison.difference(name, baseline)
    for name in comparison.values
    if baseline is not None and name != baseline
  }
  plots.frontier_figure(
    target / "frontier.png",
    comparison.budgets,
    {name: comparison.frontier(name) for name in comparison.values},
    differences=differences or None,
    baseline=baseline,
  )
  plots.reward_distribution_figure(
    target / "reward_distribution.png",
    {name: np.stack([records.rewards for records in group]) for name, group in runs.items()},
  )


def _results(comparison: Comparison, baselines: Sequence[str]) -> dict[str, Any]:
  def plain(interval: Interval) -> dict[str, list[float]]:
    return {end: np.asarray(getattr(interval, end)).tolist() for end in ("estimate", "low", "high")}

  return {
    "estimator": comparison.method,
    "budgets": comparison.budgets,
    "num_prompts": len(comparison.prompts),
    "num_samples": comparison.num_samples,
    "seeds": {name: len(values) for name, values in comparison.values.items()},
    "mean_length": dict(comparison.mean_lengths),
    "frontier": {name: plain(comparison.frontier(name)) for name in comparison.values},
    "difference": {
      baseline: {
        name: plain(comparison.difference(name, baseline))
        for name in comparison.values
        if name != baseline
      }
      for baseline in baselines
    },
  }


def _settings_table(settings: Mapping[str, Any]) -> str:
  if not settings:
    return ""
  return markdown_table(
    ["setting", "value"], [[name, _inline(str(value))] for name, value in settings.items()]
  )


def _distinct_share(records: Records) -> float:
  shares = [len(set(row)) / len(row) for row in records.samples.completions]
  return float(np.mean(shares))


def _inline(text: str, limit: int = 300) -> str:
  """Text on one line that Markdown does not interpret."""
  text = " ".join(text.split())
  text = text if len(text) <= limit else text[: limit - 1] + "…"
  for character in "\\`*_|<[#":
    text = text.replace(character, f"\\{character}")
  return text
