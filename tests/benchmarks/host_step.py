"""Times what the rule adds to a step of a host's trainer, on the quickstart's sizes.

Run: python -m tests.benchmarks.host_step trl [--steps 8] [--kl-coefficient 2]
     python -m tests.benchmarks.host_step tunix

Both times are of the same steps: the rule's is the time inside our hook, a step's is that of the
whole step, so that a busy machine slows both. The first steps, which compile, are left out.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable

from experiments.integrations.openers import QUICKSTART, Flags

WARM_UP = 2


class Clock:
  """Seconds of each call of what it wraps."""

  def __init__(self) -> None:
    self.seconds: list[float] = []

  def __call__(self, function: Callable) -> Callable:
    def timed(*args, **kwargs):
      started = time.perf_counter()
      result = function(*args, **kwargs)
      self.seconds.append(time.perf_counter() - started)
      return result

    return timed


def trl_times(flags: Flags) -> tuple[list[float], list[float]]:
  """Seconds of the hook and of the step, each step."""
  import transformers
  import trl

  from experiments.integrations.trl_openers import make_trainer

  theirs, both, steps = Clock(), Clock(), Clock()

  class Host(trl.GRPOTrainer):
    _generate_and_score_completions = theirs(trl.GRPOTrainer._generate_and_score_completions)

  class Steps(transformers.TrainerCallback):
    def on_step_begin(self, *args, **kwargs):
      self.started = time.perf_counter()

    def on_step_end(self, *args, **kwargs):
      steps.seconds.append(time.perf_counter() - self.started)

  trainer = make_trainer(flags, Host)
  trainer._generate_and_score_completions = both(trainer._generate_and_score_completions)
  trainer.add_callback(Steps())
  trainer.train()
  ours = [b - t for b, t in zip(both.seconds, theirs.seconds, strict=True)]
  return ours, steps.seconds


def tunix_times(flags: Flags) -> tuple[list[float], list[float]]:
  """Seconds of the estimator and between its calls, each step."""
  from tunix.rl import function_registry

  from experiments.integrations.tunix_openers import batches, make_learner

  hook, starts = Clock(), []
  learner = make_learner(flags)
  estimator = hook(function_registry.get_advantage_estimator("tea"))

  def registered(**kwargs):
    starts.append(time.perf_counter())
    return estimator(**kwargs)

  function_registry.register_advantage_estimator("tea")(registered)
  learner.train(batches(flags, learner.rl_cluster.cluster_config.rollout_config))
  return hook.seconds[:-1], [after - before for before, after in itertools.pairwise(starts)]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("host", choices=("trl", "tunix"))
  parser.add_argument("--rule", default="tea:tail_fraction=0.5")
  parser.add_argument("--model", default="", help="Hugging Face folder; SmolLM2 if empty")
  parser.add_argument("--steps", type=int, default=8)
  parser.add_argument("--prompts-per-step", type=int, default=QUICKSTART.data.prompts_per_step)
  parser.add_argument("--num-rollouts", type=int, default=QUICKSTART.sampling.num_rollouts)
  parser.add_argument("--kl-coefficient", type=float, default=0.0)
  given = vars(parser.parse_args())
  host = given.pop("host")
  with tempfile.TemporaryDirectory() as folder:
    times = {"trl": trl_times, "tunix": tunix_times}[host](Flags(output=folder, **given))
  first = times[0][0]
  hook, step = (seconds[WARM_UP:] for seconds in times)
  shares = [100 * h / s for h, s in zip(hook, step, strict=True)]
  print(
    f"{host}, {given['rule']}, {given['prompts_per_step']} x {given['num_rollouts']} rollouts, "
    f"{len(step)} steps after {WARM_UP}\n"
    f"  rule: median {1e3 * statistics.median(hook):.2f} ms "
    f"({1e3 * min(hook):.2f}-{1e3 * max(hook):.2f}), first call {1e3 * first:.0f} ms\n"
    f"  step: median {statistics.median(step):.2f} s ({min(step):.2f}-{max(step):.2f})\n"
    f"  share: median {statistics.median(shares):.4f} %, largest {max(shares):.4f} %"
  )


if __name__ == "__main__":
  main()
