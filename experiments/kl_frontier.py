"""Which advantage rule is best at the same KL, in small worlds where everything is exact.

  python -m experiments.kl_frontier --output runs/kl_frontier

Trains every rule to equilibrium over a grid of KL coefficients and compares best-of-N at equal KL
with the most that is attainable. About a minute on two cores.
"""

from __future__ import annotations

import dataclasses
import shlex
import sys
from pathlib import Path

import tyro
from rich.console import Console

from experiments import command
from tea_jax.studies.kl_frontier import FrontierConfig, default_rules, run_frontier
from tea_jax.studies.kl_frontier.report import noise_table, share_table, write_frontier


@dataclasses.dataclass(frozen=True)
class Flags(FrontierConfig):
  """The study and where its results go.

  Attributes:
    output: folder of the results; created if need be.
    rules: labels of the rules to run; empty for all.
    workers: rules that are trained at the same time.
    figures: whether to draw; needs the extra "plots".
  """

  output: Path = Path("runs/kl_frontier")
  rules: tuple[str, ...] = ()
  workers: int = 2
  figures: bool = True

  def study(self) -> FrontierConfig:
    fields = dataclasses.fields(FrontierConfig)
    return FrontierConfig(**{field.name: getattr(self, field.name) for field in fields})


def main(flags: Flags) -> None:
  config = flags.study()
  known = default_rules(config.budgets[-1], config.num_rollouts)
  if unknown := [rule for rule in flags.rules if rule not in known]:
    raise ValueError(f"unknown rule {unknown[0]!r}; known: {', '.join(known)}")
  rules = {label: known[label] for label in flags.rules or known}
  console = Console(stderr=True)
  done: list[str] = []

  def progress(label: str) -> None:
    done.append(label)
    console.print(f"{len(done)}/{len(rules)} {label}", highlight=False)

  results = run_frontier(config, rules, workers=flags.workers, progress=progress)
  ran = shlex.join(["python", "-m", "experiments.kl_frontier", *sys.argv[1:]])
  write_frontier(flags.output, results, config, command=ran, figures=flags.figures)
  print(f"Share of the attainable gain, %, at KL {config.targets}:\n")
  print(share_table(results, config))
  print("\nGroups a step until signal equals noise:\n")
  print(noise_table(results))
  print(f"\nWrote {flags.output / 'report.md'}")


if __name__ == "__main__":
  chosen = tyro.cli(Flags, description=__doc__)
  sys.exit(command.run(lambda: main(chosen)))
