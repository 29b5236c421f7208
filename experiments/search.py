"""Searches at the same number of rollouts: `python -m experiments.search --preset quickstart`.

Runs scaling-law-guided search and its rivals on held-out prompts, with the policy or with
`--server http://...`. Every rollout is stored when it is scored and shared by all methods and
budgets: the same command goes on where it was, and another method takes what is there. Writes
report.md, results.json and search.png. `--preset toy` runs the searches on problems whose laws are
known, where an oracle says what they lose.
"""

from __future__ import annotations

import dataclasses
import sys

import tyro
import yaml

from experiments import command
from tea_jax.rewards import make_reward
from tea_jax.runs.config import to_dict
from tea_jax.runs.flags import parse_tree
from tea_jax.runtime import processes
from tea_jax.runtime.compilation import enable_compilation_cache
from tea_jax.scaling import search_schedule
from tea_jax.studies import toy_search
from tea_jax.studies.search_config import SEARCH_PRESETS, SearchConfig
from tea_jax.studies.search_pool import make_pool, scorer
from tea_jax.studies.searches import run_searches, summary_table, write_study


def main(arguments: list[str] | None = None) -> int:
  chosen = sys.argv[1:] if arguments is None else arguments
  return command.run(lambda: work(chosen), several_processes=True)


def parse(arguments: list[str]) -> tuple[SearchConfig, bool]:
  """`(config, dry run)`: flags override the preset."""
  known, rest = command.first_flags(arguments)
  if known.preset and known.preset not in SEARCH_PRESETS:
    known_names = ", ".join((*SEARCH_PRESETS, "toy"))
    raise ValueError(f"unknown preset {known.preset!r}; known: {known_names}")
  default = SEARCH_PRESETS[known.preset or "quickstart"]
  prog = "python -m experiments.search"
  config = parse_tree(SearchConfig, rest, prog=prog, default=default, description=__doc__)
  return config, known.dry_run


@dataclasses.dataclass(frozen=True)
class ToyFlags:
  """The toy problems.

  Attributes:
    budgets: N.
    num_problems: of each budget.
    seed: of the problems.
    output: folder of the report.
    figures: draw the figure (needs matplotlib).
  """

  budgets: tuple[int, ...] = toy_search.BUDGETS
  num_problems: int = 4000
  seed: int = 0
  output: str = "runs/search-toy"
  figures: bool = True


def work_toy(arguments: list[str], dry_run: bool) -> None:
  flags = tyro.cli(ToyFlags, args=arguments, prog="python -m experiments.search --preset toy")
  if dry_run:
    print(yaml.safe_dump(to_dict(flags), sort_keys=False), end="")
    return
  found = toy_search.run_toy(
    flags.budgets, num_problems=flags.num_problems, seed=flags.seed, say=print
  )
  print(f"report: {toy_search.write_toy(flags.output, found, figures=flags.figures)}")


def work(arguments: list[str]) -> None:
  known, rest = command.first_flags(arguments)
  if known.preset == "toy":
    processes.require_one("the toy search")
    work_toy(rest, known.dry_run)
    return
  flags, dry_run = parse(arguments)
  if dry_run:
    plan = {n: search_schedule(n)._asdict() for n in flags.budgets}
    print(yaml.safe_dump({"schedules": plan} | to_dict(flags), sort_keys=False), end="")
    return
  processes.connect(flags.mesh.distributed)
  enable_compilation_cache()
  with processes.stopping_together(), processes.together():
    search(flags)


def search(flags: SearchConfig) -> None:
  """Runs the searches and writes the report."""
  made = 0

  def progress(count: int) -> None:
    nonlocal made
    made += count
    command.say(f"  {made} new rollouts")

  pool, prompts = make_pool(flags, progress=progress)
  judge = scorer(make_reward(flags.verifier), prompts) if flags.verifier else None
  law = {name: getattr(flags, name) for name in ("law", "tail_fraction", "coefficient")}
  branching = {"states": flags.states}
  study = run_searches(
    pool,
    flags.methods,
    flags.budgets,
    options={
      "scaling_law_search": law | branching,
      "mean_guided_search": branching,
      "ucb_search": branching,
    },
    correct=(lambda indices, texts: judge(indices, texts) > 0.5) if judge else None,
    say=command.say,
  )
  study |= {"prompts": [prompt.text for prompt in prompts[:4]], "settings": to_dict(flags)}
  if processes.is_first():
    report = write_study(flags.output, study, title="Searches", figures=flags.figures)
    print(f"{summary_table(study)}\nreport: {report}")


if __name__ == "__main__":
  sys.exit(main())
