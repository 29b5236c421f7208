"""Searches at the same number of rollouts: `python -m experiments.search --preset quickstart`.

Runs scaling-law-guided search and its rivals on held-out prompts, with the policy or with
`--server http://...`. Every rollout is stored when it is scored and shared by all methods and
budgets: the same command goes on where it was, and another method takes what is there. Writes
report.md, results.json and search.png. `--preset toy` runs the searches on problems whose laws are
known, where an oracle says what they lose.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import tyro
import yaml

from experiments import command
from tea_jax.data import EncodedPrompts, Prompt, column_names, reward_inputs
from tea_jax.data.templates import render_prompt
from tea_jax.evaluation.identity import evaluation_spec
from tea_jax.evaluation.records import check_spec
from tea_jax.models.policy import Policy
from tea_jax.models.weights.load import resolve
from tea_jax.models.weights.tokenizer import load_tokenizer
from tea_jax.rewards import RewardFunction, call_reward, make_reward
from tea_jax.rollout.engine import RolloutEngine
from tea_jax.rollout.sampling import SamplingConfig
from tea_jax.runs import build
from tea_jax.runs.config import RunConfig, to_dict
from tea_jax.runtime.compilation import enable_compilation_cache
from tea_jax.runtime.keys import make_key
from tea_jax.runtime.secrets import public_url
from tea_jax.scaling import search_schedule
from tea_jax.scaling.completions_server import CompletionsServer
from tea_jax.scaling.generators import EngineGenerator, Generator
from tea_jax.scaling.rollout_pool import RolloutPool
from tea_jax.studies import toy_search
from tea_jax.studies.search_config import SEARCH_PRESETS, SearchConfig
from tea_jax.studies.searches import run_searches, summary_table, write_study


def of_policy(policy: Policy, encoded: EncodedPrompts, flags: SearchConfig) -> Generator:
  """Generates with the rollout engine."""
  names = ("temperature", "top_k", "top_p", "min_p")
  sampling = {name: getattr(flags.sampling, name) for name in names}

  def engine(length: int) -> RolloutEngine:
    return RolloutEngine(
      policy,
      SamplingConfig(max_completion_length=length, **sampling),
      max_rows=flags.rows_per_call,
      smallest_prompt=max(map(len, encoded.tokens)) + flags.state_length,
      mesh=build.run_mesh(RunConfig(mesh=flags.mesh)),
    )

  return EngineGenerator(
    engine,
    policy.params,
    encoded.tokens,
    key=make_key(flags.seed),
    max_length=flags.sampling.max_completion_length,
    prompt_ids=[prompt.id for prompt in encoded.prompts],
    group_size=flags.group_size,
    rows_per_call=flags.rows_per_call,
  )


def of_server(prompts: Sequence[Prompt], flags: SearchConfig) -> Generator:
  """Generates with a completions server; `model.name` names its tokenizer for chats."""
  tokenizer = load_tokenizer(resolve(flags.model.name)) if flags.data.chat else None
  template = "chat" if flags.data.chat else "raw"
  return CompletionsServer(
    flags.server,
    [render_prompt(prompt, tokenizer, template, flags.data.system_prompt) for prompt in prompts],
    max_length=flags.sampling.max_completion_length,
    model=flags.server_model,
    prompt_ids=[prompt.id for prompt in prompts],
    group_size=flags.group_size,
    temperature=flags.sampling.temperature,
    top_p=flags.sampling.top_p,
    seed=flags.seed,
  )


def make_pool(flags: SearchConfig) -> tuple[RolloutPool, list[Prompt], Any]:
  """The pool, its prompts, and a function that scores texts with any reward."""
  config = RunConfig(model=flags.model, reward=flags.reward, mesh=flags.mesh)
  reward = build.make_run_reward(config)
  prompts = build.load_splits(flags.data)["test"][: flags.num_prompts]
  if flags.server:
    generator = of_server(prompts, flags)
    origin = {"server": public_url(flags.server), "sampling": to_dict(flags.sampling)}
    origin |= {"seed": flags.seed}
  else:
    policy = build.load_run_policy(config)
    encoded = build.encode(prompts, policy, flags.data, flags.sampling)
    prompts, generator = encoded.prompts, of_policy(policy, encoded, flags)
    shared = {name: getattr(flags, name) for name in ("model", "data", "sampling", "seed")}
    origin = evaluation_spec(policy.params, **shared)
  folder = pathlib.Path(flags.output) / "rollouts"
  ids = {"prompts": [prompt.id for prompt in prompts], "reward": to_dict(flags.reward)}
  sizes = {name: getattr(flags, name) for name in ("state_length", "group_size")}
  check_spec(folder, origin | ids | sizes)
  columns = column_names(prompts)

  def scored(function: RewardFunction, indices: Sequence[int], texts: Sequence[str]) -> np.ndarray:
    rows, values = reward_inputs([prompts[i] for i in indices], 1, columns=columns)
    return call_reward(function, rows, texts, values)

  made = 0

  def progress(count: int) -> None:
    nonlocal made
    made += count
    print(f"  {made} new rollouts", flush=True)

  pool = RolloutPool(
    generator,
    lambda indices, texts: scored(reward, indices, texts),
    len(prompts),
    state_length=flags.state_length,
    folder=folder,
    groups_per_part=max(1, flags.rows_per_call // flags.group_size),
    progress=progress,
  )
  return pool, prompts, scored


def main(arguments: list[str] | None = None) -> int:
  return command.run(lambda: work(sys.argv[1:] if arguments is None else arguments))


def parse(arguments: list[str]) -> tuple[SearchConfig, bool]:
  """`(config, dry run)`: flags override the preset."""
  known, rest = command.first_flags(arguments)
  if known.preset and known.preset not in SEARCH_PRESETS:
    raise ValueError(f"unknown preset {known.preset!r}; known: {', '.join(SEARCH_PRESETS)}")
  default = SEARCH_PRESETS[known.preset or "quickstart"]
  return tyro.cli(SearchConfig, args=rest, default=default, description=__doc__), known.dry_run


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


def work_toy(arguments: list[str]) -> None:
  flags = tyro.cli(ToyFlags, args=arguments, prog="python -m experiments.search --preset toy")
  found = toy_search.run_toy(
    flags.budgets, num_problems=flags.num_problems, seed=flags.seed, say=print
  )
  print(f"report: {toy_search.write_toy(flags.output, found, figures=flags.figures)}")


def work(arguments: list[str]) -> None:
  known, rest = command.first_flags(arguments)
  if known.preset == "toy" and not known.dry_run:
    work_toy(rest)
    return
  flags, dry_run = parse(arguments)
  if dry_run:
    plan = {n: search_schedule(n)._asdict() for n in flags.budgets}
    print(yaml.safe_dump({"schedules": plan} | to_dict(flags), sort_keys=False), end="")
    return
  enable_compilation_cache()
  pool, prompts, scored = make_pool(flags)
  verifier = make_reward(flags.verifier) if flags.verifier else None
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
    correct=(lambda i, texts: scored(verifier, i, texts) > 0.5) if verifier else None,
    say=lambda text: print(text, flush=True),
  )
  study |= {"prompts": [prompt.text for prompt in prompts[:4]], "settings": to_dict(flags)}
  report = write_study(flags.output, study, title="Searches", figures=flags.figures)
  print(f"{summary_table(study)}\nreport: {report}")


if __name__ == "__main__":
  sys.exit(main())
