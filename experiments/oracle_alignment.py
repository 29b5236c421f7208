"""How well advantage rules point along the best-of-N gradient (Table 13).

  python -m experiments.oracle_alignment --synthetic
  python -m experiments.oracle_alignment --preset quickstart --num-seeds 5

For every rule, pool and group size m the cosine to the exact best-of-N gradient, mean and standard
error over seeds, with the published numbers beside: on synthetic pools of known shapes with
orthonormal scores, or on the policy, prompts and reward of a preset with the gradients of the last
block. Writes alignment.csv, alignment.json, alignment.png and report.md.
"""

from __future__ import annotations

import dataclasses
import sys

import rich.console
import rich.table

from experiments import command
from tea_jax.advantages import AdvantageSpec, GroupRule
from tea_jax.runs import groups
from tea_jax.runs.config import RunConfig, to_dict
from tea_jax.runs.flags import parse_tree
from tea_jax.runs.presets import get_preset
from tea_jax.runs.reward import RewardConfig
from tea_jax.runtime.compilation import enable_compilation_cache
from tea_jax.studies.alignment import estimators, report, synthetic_pools
from tea_jax.studies.alignment.policy_study import policy_study
from tea_jax.studies.alignment.synthetic_study import synthetic_study


@dataclasses.dataclass(frozen=True)
class Flags:
  """What is measured, and how.

  Attributes:
    synthetic: pools of known shapes with orthonormal scores.
    preset: pools drawn from the policy of this preset instead.
    rules: rules, each `name` or `name:argument=value,...`; "best_of_n_oracle" takes the group as
      pool.
    pools: shapes of the rewards (synthetic pools).
    num_rollouts: group sizes m.
    budget: N of the oracle, and of the rules that have a budget and do not name one.
    num_prompts: prompts that one gradient is summed over.
    pool_size: rollouts that stand for the policy at a prompt.
    num_seeds: independent draws of groups; of synthetic pools too, while a policy has one pool a
      prompt.
    location_spread: standard deviation of the prompts' locations (synthetic pools).
    scale_spread: standard deviation of the logarithm of the prompts' scales (synthetic pools).
    seed: of all random numbers.
    memory_gb: for gradient sums and scores of a policy; what does not fit together takes another
      pass.
    compare: rule whose paired differences to the best other one are reported; None for none.
    output: folder of the results.
    figure: draw alignment.png.
  """

  synthetic: bool = False
  preset: str | None = None
  rules: tuple[str, ...] = estimators.RULES
  pools: tuple[str, ...] = synthetic_pools.DEFAULT_POOLS
  num_rollouts: tuple[int, ...] = estimators.PUBLISHED_SIZES
  budget: int = estimators.PUBLISHED_BUDGET
  num_prompts: int = 32
  pool_size: int = 512
  num_seeds: int = 40
  location_spread: float = 2.0
  scale_spread: float = 0.5
  seed: int = 0
  memory_gb: float = 6.0
  compare: str | None = "blended_influence"
  output: str = "runs/oracle_alignment"
  figure: bool = True
  model: groups.PolicyConfig = dataclasses.field(default_factory=groups.PolicyConfig)
  data: groups.DataConfig = dataclasses.field(default_factory=groups.DataConfig)
  reward: RewardConfig = dataclasses.field(default_factory=RewardConfig)
  sampling: groups.RolloutConfig = dataclasses.field(default_factory=groups.RolloutConfig)
  mesh: groups.MeshConfig = dataclasses.field(default_factory=groups.MeshConfig)


_OF_A_POLICY = ("model", "data", "reward", "sampling", "mesh")
_SYNTHETIC = ("pools", "location_spread", "scale_spread")


def parse(arguments: list[str]) -> Flags:
  """The flags; those of a policy have the preset's values as defaults."""
  preset = command.first_flags(arguments)[0].preset
  config = get_preset(preset).config if preset else RunConfig()
  defaults = {name: getattr(config, name) for name in _OF_A_POLICY}
  prog = "python -m experiments.oracle_alignment"
  return parse_tree(Flags, arguments, prog=prog, default=Flags(**defaults), description=__doc__)


def build_rules(flags: Flags) -> dict[str, GroupRule]:
  """The rules by their text, with the budget of the study where they have one."""
  specs = {text: AdvantageSpec.parse(text) for text in flags.rules}
  return {text: spec.with_default(budget=flags.budget).build() for text, spec in specs.items()}


def run_study(flags: Flags) -> report.Study:
  names = ("num_rollouts", "num_seeds", "budget", "num_prompts", "pool_size", "seed")
  names += _SYNTHETIC if flags.synthetic else ("memory_gb",)
  settings = {name: getattr(flags, name) for name in names}
  if flags.synthetic:
    return synthetic_study(build_rules(flags), **settings)
  enable_compilation_cache()
  config = RunConfig(**{name: getattr(flags, name) for name in _OF_A_POLICY})
  study = policy_study(config, build_rules(flags), folder=flags.output, **settings)
  return {str(flags.preset): study}


def show(study: report.Study, sizes: tuple[int, ...]) -> None:
  tables = {pool: report.alignment_rows(study, pool) for pool in study}
  tables["published, on a 1B language model"] = report.published_rows(list(sizes))
  for title, rows in tables.items():
    table = rich.table.Table("rule", *(f"m={m}" for m in sizes), title=title, title_justify="left")
    for name, *cells in rows:
      table.add_row(name, *(f"[bold]{c.strip('*')}[/]" if "**" in c else c for c in cells))
    rich.console.Console(width=132).print(table)


def main(arguments: list[str] | None = None) -> int:
  return command.run(lambda: work(parse(sys.argv[1:] if arguments is None else arguments)))


def work(flags: Flags) -> None:
  if flags.synthetic == (flags.preset is not None):
    raise ValueError("say either --synthetic or --preset NAME: where the pools come from")
  study = run_study(flags)
  show(study, flags.num_rollouts)
  without = (*_OF_A_POLICY, "preset", "memory_gb") if flags.synthetic else _SYNTHETIC
  settings = {name: value for name, value in to_dict(flags).items() if name not in without}
  written = report.write_alignment(
    study, flags.output, settings=settings, compare=flags.compare, figure=flags.figure
  )
  print(f"report: {written}")


if __name__ == "__main__":
  sys.exit(main())
