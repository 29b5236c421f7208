"""How good would best-of-N be, and how far can its prediction be trusted?

  python -m experiments.scaling_law base=runs/evaluation/records/base tuned=rewards.jsonl
  python -m experiments.scaling_law --synthetic

Of stored rewards (folders of `experiments.evaluate`, or any JSONL or Parquet file with a prompt and
a reward a line): the best-of-N frontier with intervals, its extrapolation, the errors of every law,
and the paired differences to the first. Synthetic: the laws' errors on known distributions, and
those of TEA's gradient. Writes report.md, results.json and a figure.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Annotated

import numpy as np
import tyro
from rich.console import Console
from rich.progress import Progress

from experiments import command
from tea_jax.evaluation.comparison import compare_runs, leave_out_unscored
from tea_jax.evaluation.records import read_records
from tea_jax.evaluation.report_tables import difference_table
from tea_jax.evaluation.reward_files import is_reward_file, read_reward_file
from tea_jax.runtime.compilation import enable_compilation_cache
from tea_jax.studies.scaling_laws import measured, report
from tea_jax.studies.scaling_laws.measured import MeasuredConfig
from tea_jax.studies.scaling_laws.synthetic import LAWS, SyntheticConfig, run_study


@dataclasses.dataclass(frozen=True)
class Flags:
  """What is predicted.

  Attributes:
    records: folders or reward files, each `label=path` or `path`; the first is the baseline.
    synthetic: study known distributions instead.
    output: folder of the report.
    prompt_column, reward_column: of reward files.
    figures: draw the figure (needs matplotlib).
    measured: of stored rewards.
    study: of known distributions.
  """

  records: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
  synthetic: bool = False
  output: str = "runs/scaling_law"
  prompt_column: str = "prompt"
  reward_column: str = "reward"
  figures: bool = True
  measured: MeasuredConfig = dataclasses.field(default_factory=MeasuredConfig)
  study: SyntheticConfig = dataclasses.field(default_factory=SyntheticConfig)


def main(arguments: list[str] | None = None) -> int:
  flags = tyro.cli(Flags, args=arguments, description=__doc__)
  return command.run(lambda: work(flags))


def work(flags: Flags) -> None:
  if flags.synthetic == bool(flags.records):
    raise ValueError("name records or reward files, or --synthetic, and not both")
  enable_compilation_cache()
  if flags.synthetic:
    with Progress(console=Console(stderr=True)) as bars:
      task = bars.add_task("laws", total=len(LAWS) * len(flags.study.num_rollouts))
      study = run_study(flags.study, lambda: bars.advance(task))
    report.write_report(flags.output, study, figures=flags.figures)
    print(report.study_table(study), *report.advice(study), sep="\n")
  else:
    stored(flags)
  print(f"report: {flags.output}/report.md")


def stored(flags: Flags) -> None:
  """The study of stored rewards, and the paired comparison where there are several."""
  runs = {}
  for label, path in command.labelled(flags.records).items():
    if is_reward_file(path):
      columns = {"prompt_column": flags.prompt_column, "reward_column": flags.reward_column}
      runs[label] = [read_reward_file(path, **columns)]
    else:
      runs[label] = [read_records(path)]
  sections = []
  if len(runs) > 1:
    runs, dropped = leave_out_unscored(runs)
    baseline = next(iter(runs))
    sections = [f"## Paired difference to {baseline}"]
    sections += [difference_table(compare_runs(runs), baseline)]
    if dropped:
      sections.append(f"{dropped} prompts are left out: a rollout of theirs was not scored.")
  tables = {label: group[0].rewards for label, group in runs.items()}
  tables = {label: table[~np.isnan(table).any(axis=1)] for label, table in tables.items()}
  study = measured.measured_study(tables, flags.measured)
  measured.write_report(flags.output, study, figures=flags.figures, sections=sections)
  print(measured.frontier_table(study), measured.error_table(study), sep="\n\n")


if __name__ == "__main__":
  sys.exit(main())
