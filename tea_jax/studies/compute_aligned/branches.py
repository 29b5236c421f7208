"""Supervised objectives compared: one cross-entropy warm-up, and every objective from there.

Source: arXiv 2604.24957, section 3.1, Tables 2 and 3.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import yaml

from tea_jax.data.supervised import Pair
from tea_jax.evaluation.records import Records
from tea_jax.evaluation.report_tables import markdown_table
from tea_jax.models.policy import Policy
from tea_jax.runs.build import load_run_policy
from tea_jax.runs.config import RunConfig
from tea_jax.runs.datasets import encode, load_pair_splits
from tea_jax.runs.groups import DataConfig, EvaluationConfig, RolloutConfig
from tea_jax.runs.reward import RewardConfig
from tea_jax.runs.supervised import SupervisedConfig, SupervisedObjectiveConfig
from tea_jax.runtime import processes
from tea_jax.runtime.files import write_text
from tea_jax.strategies import crossover_budget
from tea_jax.studies.compute_aligned import published
from tea_jax.studies.compute_aligned.answer_curves import (
  Metric,
  budget_curves,
  curve_table,
  difference_table,
  differences,
)
from tea_jax.studies.matched_runs import evaluate_parameters
from tea_jax.training.supervised import train_supervised

WARM_UP = "warm_up"


@dataclasses.dataclass(frozen=True)
class BranchExperiment:
  """Objectives that branch from one warm-up.

  Attributes:
    about: one line.
    config: of every run; folder, seed and objective are replaced.
    warm_up_steps: of cross-entropy, trained once and shared.
    objectives: compared, the first is what the others are compared with; see `parse_objective`.
    seeds: of the branches.
    sampling, evaluation, reward: how the held-out prompts are answered and judged.
    budgets: k of pass@k and maj@k.
    metric: "pass" or "majority".
    make_policy: makes the policy that the warm-up starts from; None for a model that exists, by the
      name in the config.
    published: the paper's curves in percent.
  """

  about: str
  config: SupervisedConfig
  warm_up_steps: int
  objectives: tuple[str, ...]
  seeds: tuple[int, ...]
  sampling: RolloutConfig
  evaluation: EvaluationConfig
  reward: RewardConfig
  budgets: tuple[int, ...] = (1, 4, 8, 16, 32, 64)
  metric: Metric = "pass"
  make_policy: Callable[[], Policy] | None = None
  published: Mapping[str, published.Curve] = dataclasses.field(default_factory=dict)


def parse_objective(text: str) -> SupervisedObjectiveConfig:
  """Reads `name` or `name:argument=value,argument=value`, e.g. `pass_at_n:budget=64`.

  Raises:
    ValueError: if a part has no `=`, or there is no such objective or argument.
  """
  name, _, rest = text.partition(":")
  known = {f.name for f in dataclasses.fields(SupervisedObjectiveConfig)} - {"name"}
  arguments = {}
  for part in filter(None, rest.split(",")):
    key, equals, value = part.partition("=")
    if not equals or key not in known:
      raise ValueError(f"objective {text!r}: {part!r} is not one of {sorted(known)} with a value")
    arguments[key] = yaml.safe_load(value)
  return SupervisedObjectiveConfig(name=name, **arguments)  # pyright: ignore[reportArgumentType]


def run_branches(
  experiment: BranchExperiment,
  *,
  splits: Mapping[str, Sequence[Pair]] | None = None,
  say: Callable[[str], None] = print,
) -> dict[str, Any]:
  """Trains the warm-up and every objective with every seed, evaluates all, writes the report.

  Started again after an interruption it goes on where it was.

  Args:
    experiment: what is compared.
    splits: instead of those of the config.
    say: told what happens, a line at a time.

  Returns:
    What `branches.json` holds, see `summarize`.
  """
  processes.require_one("run_branches")
  config = experiment.config
  folder = pathlib.Path(config.run_folder)
  splits = splits or load_pair_splits(config.data)
  warm_up = dataclasses.replace(
    config,
    run_folder=str(folder / WARM_UP),
    steps=experiment.warm_up_steps,
    objective=SupervisedObjectiveConfig(),
  )
  say(f"warm-up: {experiment.warm_up_steps} steps of cross-entropy")
  policy = experiment.make_policy() if experiment.make_policy else load_run_policy(config)
  start = train_supervised(warm_up, policy=policy, splits=splits).policy
  records = {WARM_UP: [evaluate(experiment, start, splits["test"], WARM_UP)]}
  for seed in experiment.seeds:
    for objective in experiment.objectives:
      name = f"{re.sub(r'[^A-Za-z0-9_.+-]+', '_', objective)}-seed{seed}"
      say(f"training {name}")
      branch = dataclasses.replace(
        config, run_folder=str(folder / name), seed=seed, objective=parse_objective(objective)
      )
      trained = train_supervised(branch, policy=start, splits=splits).policy
      records.setdefault(objective, []).append(evaluate(experiment, trained, splits["test"], name))
      del trained
  found = summarize(experiment, records)
  write_text(folder / "branches.json", json.dumps(found, indent=1) + "\n")
  write_text(folder / "report.md", _report(experiment, found))
  return found


def evaluate(
  experiment: BranchExperiment, policy: Policy, pairs: Sequence[Pair], name: str
) -> Records:
  """Samples and scores answers to the prompts of held-out pairs."""
  config, data = experiment.config, experiment.config.data
  run = RunConfig(
    run_folder=config.run_folder,
    model=config.model,
    mesh=config.mesh,
    data=DataConfig(
      prompts=data.pairs,
      chat=data.chat,
      system_prompt=data.system_prompt,
      max_prompt_length=data.max_length,
      prompts_per_step=4,
    ),
    reward=experiment.reward,
    sampling=experiment.sampling,
    evaluation=experiment.evaluation,
  )
  chosen = [pair.prompt for pair in pairs][: experiment.evaluation.num_prompts]
  return evaluate_parameters(
    policy,
    policy.params,
    encode(chosen, policy, run.data, run.sampling),
    run.reward.build(),
    run,
    folder=pathlib.Path(config.run_folder) / "eval" / name,
  )


def summarize(
  experiment: BranchExperiment, records: Mapping[str, Sequence[Records]]
) -> dict[str, Any]:
  """pass@k or maj@k of every objective and seed, and paired differences to the first; JSON.

  Returns:
    `curves` (objective -> seeds x budgets, in percent), `minus_first` (see `differences`),
    `crossovers` (rows of small, large, predicted and measured budget, the last of all k up to the
    largest budget; None where the curves do not cross).
  """
  budgets, metric = experiment.budgets, experiment.metric
  pattern = experiment.reward.answer_pattern

  def curve(one: Records) -> np.ndarray:
    return budget_curves(one, budgets, metric=metric, answer_pattern=pattern)

  curves = {name: np.stack([curve(one) for one in group]) for name, group in records.items()}
  return {
    "budgets": list(budgets),
    "metric": metric,
    "seeds": list(experiment.seeds),
    "curves": {name: values.mean(axis=1).tolist() for name, values in curves.items()},
    "minus_first": differences(curves, experiment.objectives[0], budgets),
    "crossovers": _crossovers(experiment, records) if metric == "pass" else [],
  }


def _crossovers(
  experiment: BranchExperiment, records: Mapping[str, Sequence[Records]]
) -> list[dict[str, Any]]:
  """Where the curve of each objective overtakes that of the next smaller budget, first k."""
  every = range(1, max(experiment.budgets) + 1)
  means = {
    parse_objective(name).strategy.budget: np.mean(
      [budget_curves(one, every, metric="pass") for one in records[name]], axis=(0, 1)
    )
    for name in experiment.objectives
  }
  found = []
  for small, large in itertools.pairwise(sorted(means)):
    above = np.flatnonzero(means[large] >= means[small])
    found.append(
      {
        "small": small,
        "large": large,
        "predicted": crossover_budget(small, large),
        "measured": every[above[0]] if above.size else None,
      }
    )
  return found


def _report(experiment: BranchExperiment, found: Mapping[str, Any]) -> str:
  budgets, metric = experiment.budgets, experiment.metric
  table = curve_table(found["curves"], budgets, metric=metric, published=experiment.published)
  minus = difference_table(found["minus_first"], budgets, metric=metric)
  crossings = [
    [str(row["small"]), str(row["large"]), f"{row['predicted']:.2f}", str(row["measured"])]
    for row in found["crossovers"]
  ]
  crossed = markdown_table(["small", "large", "predicted", "measured, first k"], crossings)
  return (
    f"# {experiment.about}\n\n"
    f"{experiment.warm_up_steps} steps of cross-entropy, then {experiment.config.steps} steps of "
    f"each objective; seeds {', '.join(map(str, experiment.seeds))}; percent of "
    f"{experiment.evaluation.num_prompts} held-out prompts, {experiment.evaluation.num_samples} "
    f"samples of each.\n\n{table}\n\n"
    f"## Minus {experiment.objectives[0]}, 95 % intervals\n\n{minus}\n"
    + (f"\n## Crossovers\n\n{crossed}\n" if crossings else "")
  )
