"""Rules compared on answers that can be checked, each from the same supervised warm-up.

With several warm-ups the same rules run from each: what the objective of the warm-up is worth to
the reinforcement learning that follows.

Source: arXiv 2604.24957, section 3.2, appendices D, J, K and N, Tables 5, 9, 13 and 14.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tea_jax.data.supervised import Pair
from tea_jax.evaluation.records import Records
from tea_jax.models.policy import Policy
from tea_jax.runs.build import load_run_policy
from tea_jax.runs.datasets import load_pair_splits
from tea_jax.runs.groups import RolloutConfig
from tea_jax.runs.presets import Preset
from tea_jax.runs.supervised import SupervisedConfig
from tea_jax.runtime import processes
from tea_jax.runtime.files import write_text
from tea_jax.studies.compute_aligned import published
from tea_jax.studies.compute_aligned.answer_curves import (
  Metric,
  budget_curves,
  curve_table,
  difference_table,
  differences,
)
from tea_jax.studies.matched_runs import BASE, MatchedRuns, moved, train_matched
from tea_jax.training.supervised import train_supervised


@dataclasses.dataclass(frozen=True)
class RewardedExperiment:
  """Reinforcement learning from warmed-up policies.

  Attributes:
    preset: rules, seeds and the config of their runs; its prompts are those of the warm-up's pairs.
    warm_ups: name -> supervised runs, one after the other, each from where the one before ended;
      runs of one folder are trained once.
    budgets: k of the tables.
    metrics: the tables, "pass" and "majority".
    make_policy: makes the policy that the warm-ups start from; None for a model that exists, by the
      name in their config.
    sampling: how the completions of the evaluation are drawn; None for as in training.
    published: metric -> the paper's curves in percent.
  """

  preset: Preset
  warm_ups: Mapping[str, tuple[SupervisedConfig, ...]]
  budgets: tuple[int, ...]
  metrics: tuple[Metric, ...] = ("pass", "majority")
  make_policy: Callable[[], Policy] | None = None
  sampling: RolloutConfig | None = None
  published: Mapping[str, Mapping[str, published.Curve]] = dataclasses.field(default_factory=dict)

  def with_preset(self, preset: Preset) -> RewardedExperiment:
    """The experiment with another preset; its warm-ups move along into the preset's folder."""
    warm_ups = {
      name: tuple(moved(stage, self.preset, preset) for stage in stages)
      for name, stages in self.warm_ups.items()
    }
    return dataclasses.replace(self, preset=preset, warm_ups=warm_ups)


def run_rewarded(
  experiment: RewardedExperiment,
  *,
  splits: Mapping[str, Sequence[Pair]] | None = None,
  say: Callable[[str], None] = print,
) -> dict[str, Any]:
  """Trains every warm-up, every rule with every seed from each, and writes the report.

  Started again after an interruption it goes on where it was.

  Args:
    experiment: what is compared.
    splits: instead of those of the first warm-up's config.
    say: told what happens, a line at a time.

  Returns:
    What `rewarded.json` holds: metric -> what `summarize` returns.
  """
  processes.require_one("run_rewarded")
  preset = experiment.preset
  folder = pathlib.Path(preset.config.run_folder)
  first = next(iter(experiment.warm_ups.values()))[0]
  splits = splits or load_pair_splits(first.data)
  policy = experiment.make_policy() if experiment.make_policy else load_run_policy(first)
  prompts = {name: [pair.prompt for pair in pairs] for name, pairs in splits.items()}
  reward = preset.config.reward.build()
  runs = {}
  for name, stages in experiment.warm_ups.items():
    start = policy
    for stage in stages:
      say(f"warm-up {name}: {stage.objective.name}, {stage.run_folder}")
      start = train_supervised(stage, policy=start, splits=splits).policy
    config = dataclasses.replace(preset.config, run_folder=str(folder / name))
    matched = dataclasses.replace(preset, config=config)
    runs[name] = train_matched(
      matched,
      policy=start,
      splits=prompts,
      reward=reward,
      sampling=experiment.sampling,
      say=say,
    )
  found = summarize(experiment, runs)
  write_text(folder / "rewarded.json", json.dumps(found, indent=1) + "\n")
  write_text(folder / "report.md", _report(experiment, found))
  return found


def summarize(experiment: RewardedExperiment, runs: Mapping[str, MatchedRuns]) -> dict[str, Any]:
  """Curves in percent and paired differences of every rule, for each metric; JSON.

  Returns:
    metric -> `curves` (rule -> seeds x budgets; the warmed-up policy is "base"), `first`, the first
    rule after the first warm-up, and `minus_first`, the differences to it, see `differences`. With
    several warm-ups names are `warm-up, rule`.
  """
  pattern = experiment.preset.config.reward.answer_pattern
  several = len(runs) > 1
  found: dict[str, Any] = {"budgets": list(experiment.budgets)}

  def curve(one: Records, metric: Metric) -> np.ndarray:
    return budget_curves(one, experiment.budgets, metric=metric, answer_pattern=pattern)

  for metric in experiment.metrics:
    curves: dict[str, np.ndarray] = {}
    for warm_up, matched in runs.items():
      for rule, group in matched.records.items():
        name = f"{warm_up}, {rule}" if several else rule
        curves[name] = np.stack([curve(one, metric) for one in group])
    first = next(name for name in curves if not name.endswith(BASE))
    found[metric] = {
      "first": first,
      "curves": {name: values.mean(axis=1).tolist() for name, values in curves.items()},
      "minus_first": differences(curves, first, experiment.budgets),
    }
  return found


def _report(experiment: RewardedExperiment, found: Mapping[str, Any]) -> str:
  preset, budgets = experiment.preset, experiment.budgets
  config = preset.config
  parts = [
    f"# {preset.about}",
    f"Warm-ups: {', '.join(experiment.warm_ups)}. Then {config.steps} steps of "
    f"{config.data.prompts_per_step} x {config.sampling.num_rollouts} completions, learning rate "
    f"{config.optimizer.learning_rate:g}, KL coefficient {config.objective.kl_coefficient:g}, "
    f"seeds {', '.join(map(str, preset.seeds))}; percent of {config.evaluation.num_prompts} "
    f"held-out prompts, {config.evaluation.num_samples} samples of each.",
  ]
  for metric in experiment.metrics:
    one = found[metric]
    known = experiment.published.get(metric, {})
    parts.append(curve_table(one["curves"], budgets, metric=metric, published=known))
    parts.append(
      f"Minus {one['first']}, 95 % intervals:\n\n"
      + difference_table(one["minus_first"], budgets, metric=metric)
    )
  return "\n\n".join(parts) + "\n"
