"""The report of matched runs: settings, verdicts, tables, training curves."""

from __future__ import annotations

import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from tea_jax.evaluation.comparison import compare_runs, leave_out_unscored
from tea_jax.evaluation.report import write_report
from tea_jax.evaluation.verdicts import verdicts
from tea_jax.rewards.verifiers import answer_reader
from tea_jax.runs.config import RunConfig
from tea_jax.runs.log import read_jsonl
from tea_jax.runs.presets import Preset
from tea_jax.studies.matched_runs import BASE, MatchedRuns, run_config_of


def matched_verdicts(runs: MatchedRuns) -> list[str]:
  """What the comparison found, a sentence or two a rule; see `verdicts`."""
  scored, _ = leave_out_unscored(runs.records)
  comparison = compare_runs(scored, budgets=runs.preset.config.evaluation.budgets or None)
  return verdicts(comparison, _baseline(runs.preset))


def report(runs: MatchedRuns, *, minutes: float) -> pathlib.Path:
  """Writes tables, figures and report.md into the comparison's folder."""
  config, rules = runs.preset.config, runs.preset.rules
  return write_report(
    config.run_folder,
    runs.records,
    baselines=(_baseline(runs.preset), BASE),
    title=f"{', '.join(rules)}: best-of-N on held-out prompts",
    settings={
      "model": config.model.name,
      "reward": " + ".join(config.reward.functions),
      "steps": config.steps,
      "prompts a step": config.data.prompts_per_step,
      "rollouts a prompt (m)": config.sampling.num_rollouts,
      "completion length": config.sampling.max_completion_length,
      "learning rate": config.optimizer.learning_rate,
      "KL": _kl_setting(config),
      "seeds": ", ".join(map(str, runs.preset.seeds)),
      "held-out prompts x completions": f"{len(runs.records[BASE][0].prompts)} x "
      f"{config.evaluation.num_samples}",
    },
    budgets=config.evaluation.budgets or None,
    answer=answer_reader(config.reward.answer_pattern),
    curves=runs.metrics,
    kl_target=config.objective.kl_target,
    notes=[*_training_notes(runs), f"This call took {minutes:.1f} minutes."],
  )


def _baseline(preset: Preset) -> str:
  return "grpo" if "grpo" in preset.rules else preset.rules[-1]


def _kl_setting(config: RunConfig) -> str:
  objective = config.objective
  if objective.kl_target is None:
    return f"coefficient {objective.kl_coefficient:g}"
  return f"steered to {objective.kl_target:g} nats a completion"


def _training_notes(runs: MatchedRuns) -> list[str]:
  notes = []
  for rule, seeds in runs.metrics.items():
    last = [[line["reward/mean"] for line in lines[-10:]] for lines in seeds]
    entropy = [[line["entropy"] for line in lines[-10:]] for lines in seeds]
    folders = [run_config_of(runs.preset, rule, seed).run_folder for seed in runs.preset.seeds]
    timings = [read_jsonl(pathlib.Path(folder) / "timings.jsonl") for folder in folders]
    seconds = statistics.median(line["time/step"] for lines in timings for line in lines)
    notes.append(
      f"{rule}: training reward of the last 10 steps {_mean(last):.3f}, entropy "
      f"{_mean(entropy):.3f} nats a token{_divergence(seeds)}, median step {seconds:.2f} s."
    )
  return notes


def _divergence(seeds: Sequence[Sequence[Mapping[str, Any]]]) -> str:
  kl = [[line["kl"] for line in lines[-10:] if "kl" in line] for lines in seeds]
  return f", KL to the base {_mean(kl):.3f} nats a completion" if any(kl) else ""


def _mean(groups: list[list[float]]) -> float:
  return statistics.fmean(value for group in groups for value in group)
