"""report.md: what a comparison found, with intervals, figures and samples, from stored records."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
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
from tea_jax.evaluation.curves import Lines, curves_figure
from tea_jax.evaluation.kl_paths import at_target, kl_path_figure, kl_table
from tea_jax.evaluation.report_tables import (
  difference_table,
  frontier_table,
  gain_table,
  inline,
  markdown_table,
  per_prompt_csv,
  qq_table,
  rates_table,
  rewards_table,
  samples_section,
  seeds_table,
)
from tea_jax.evaluation.verdicts import verdicts
from tea_jax.rewards.verifiers import extract_boxed
from tea_jax.runtime.files import write_text

_METHODS = """\
Intervals are 95 % percentile bootstraps over prompts ({resamples}); differences are paired by
prompt. "Exact" is the unbiased order-statistic estimator over all subsets of the {n} completions of
a prompt; "grouped" is the papers' mean of maxima over consecutive groups. Neighbouring budgets are
strongly correlated. A difference counts as shown when its interval excludes 0 (bold).
Intervals over prompts speak of other prompts for these runs; those over runs (Student's t) of
other runs of the same recipe, which differ by seed and by rounding, on these prompts."""
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
  curves: Mapping[str, Sequence[Lines]] | None = None,
  answer: Callable[[str], str | None] = extract_boxed,
  kl_target: float | None = None,
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
    curves: method -> metrics of its training runs, drawn as curves.png.
    answer: reads the answer that votes in maj@k, see `accuracy_rows`.
    kl_target: KL that the runs were steered to; the report says which of them are there.

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
  for name in baselines[:1]:
    sections += [*verdicts(exact, name), _headline(exact, name)]
  if figures:
    _draw(target, runs, exact, baselines)
    sections.append("![Best-of-N frontier](frontier.png)")
    if curves:
      curves_figure(target / "curves.png", curves)
      sections.append("![Training curves](curves.png)")
  sections += ["## Best-of-N reward (exact estimator)", frontier_table(exact)]
  for name in baselines:
    sections += [f"## Paired difference to {name}", difference_table(exact, name)]
    sections += [_RATES.format(name), rates_table(exact, name)]
    if by_seed := seeds_table(exact, name):
      sections += [f"Each run's difference to {name}:", by_seed]
  if "base" in runs and (gained := gain_table(exact, "base")):
    sections += ["## Where the gain over the base comes from", gained]
  if dividing:
    grouped = compare_runs(runs, budgets=dividing, method="grouped")
    sections += ["## Best-of-N reward (grouped, as in the papers)", frontier_table(grouped)]
    for name in baselines[:1]:
      sections += [difference_table(grouped, name), _RATES.format(name), rates_table(grouped, name)]
  if is_checkable(runs):
    header = ["method", "metric", *(f"k = {budget}" for budget in exact.budgets)]
    rows = accuracy_rows(runs, exact.budgets, answer=answer)
    sections += ["## Correct answers, %", markdown_table(header, rows)]
  sections += ["## Rewards and lengths", rewards_table(runs)]
  if figures:
    sections.append("![Reward distribution](reward_distribution.png)")
  if curves:
    sections += _kl_section(target, curves, kl_target, figures)
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
    runs = len(comparison.seed_differences(name, baseline))
    lines.append(
      f"- **{name} − {baseline}**: {', '.join(found)}; {len(comparison.prompts)} held-out prompts, "
      f"{comparison.num_samples} completions each, {runs} seed{'s' if runs > 1 else ''}."
    )
    if runs > 1:
      over = comparison.difference_over_seeds(name, baseline)[-1]
      lines[-1] += f" Over runs, bo{comparison.budgets[-1]}: [{over.low:+.3f}, {over.high:+.3f}]."
  return "\n".join(lines)


def _kl_section(
  target: pathlib.Path,
  curves: Mapping[str, Sequence[Lines]],
  kl_target: float | None,
  figures: bool,
) -> list[str]:
  table = kl_table(curves, kl_target)
  if not table:
    return []
  sections = ["## KL to the base", "Over the last quarter of the steps:", table]
  if kl_target is not None and not all(at_target(group, kl_target) for group in curves.values()):
    sections.append(
      f"Rules that are not at {kl_target:g} are not compared at one KL above. `python -m "
      f"experiments.evaluate base=MODEL a=RUN,RUN b=RUN,RUN --at-kl {kl_target:g}` draws "
      "the weights of runs beyond it back until they are."
    )
  if figures and kl_path_figure(target / "best_of_n_against_kl.png", curves):
    sections.append("![Best-of-N against KL](best_of_n_against_kl.png)")
  return sections


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
    "difference_by_seed": {
      baseline: {
        name: {
          "seeds": comparison.seed_differences(name, baseline).tolist(),
          **plain(comparison.difference_over_seeds(name, baseline)),
        }
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
    ["setting", "value"], [[name, inline(str(value))] for name, value in settings.items()]
  )
