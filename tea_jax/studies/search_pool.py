"""The rollouts that searches share: who generates them, and what scores them."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from tea_jax.data import EncodedPrompts, Prompt, column_names, reward_inputs
from tea_jax.evaluation.identity import evaluation_spec, sampling_spec
from tea_jax.evaluation.records import check_spec
from tea_jax.evaluation.shares import shared_scores
from tea_jax.evaluation.sources import completions_server
from tea_jax.models.policy import Policy
from tea_jax.rewards import RewardFunction, call_reward
from tea_jax.rollout.engine import RolloutEngine
from tea_jax.runs import build
from tea_jax.runs.config import RunConfig, to_dict
from tea_jax.runs.datasets import encode, load_splits
from tea_jax.runtime import processes
from tea_jax.runtime.keys import make_key
from tea_jax.runtime.secrets import public_url
from tea_jax.scaling.generators import EngineGenerator, Generator
from tea_jax.scaling.rollout_pool import RolloutPool, Scorer
from tea_jax.studies.search_config import SearchConfig


def make_pool(
  config: SearchConfig, *, progress: Callable[[int], None] | None = None
) -> tuple[RolloutPool, list[Prompt]]:
  """The pool of a search and its prompts; rollouts of other settings are refused.

  Several processes call it alike.

  Args:
    config: of the search.
    progress: called with the number of rollouts that were made.

  Raises:
    ValueError: if the folder holds rollouts of other settings; the differences are named.
  """
  run = RunConfig(model=config.model, reward=config.reward, mesh=config.mesh)
  processes.require_same(to_dict(config), "the search")
  reward = config.reward.build(build.reward_mesh(None))
  prompts = load_splits(config.data)["test"][: config.num_prompts]
  shared = {name: getattr(config, name) for name in ("model", "data", "sampling", "seed")}
  if config.server:
    generator: Generator = completions_server(
      config.server,
      prompts,
      **shared,
      server_model=config.server_model,
      group_size=config.group_size,
    )
    origin = {"server": public_url(config.server), "sampling": sampling_spec(config.sampling)}
    origin |= {"seed": config.seed}
  else:
    policy = build.load_run_policy(run)
    encoded = encode(prompts, policy, config.data, config.sampling)
    prompts, generator = encoded.prompts, engine_generator(policy, encoded, config)
    origin = evaluation_spec(policy.params, **shared)
  folder = pathlib.Path(config.output) / "rollouts"
  ids = {"prompts": [prompt.id for prompt in prompts], "reward": to_dict(config.reward)}
  sizes = {name: getattr(config, name) for name in ("state_length", "group_size")}
  processes.require_same(origin | ids, "the search")
  processes.on_first(check_spec, folder, origin | ids | sizes)
  pool = RolloutPool(
    generator,
    scorer(reward, prompts),
    len(prompts),
    state_length=config.state_length,
    folder=folder,
    groups_per_part=max(1, config.rows_per_call // config.group_size),
    progress=progress,
  )
  return pool, prompts


def scorer(reward: RewardFunction, prompts: Sequence[Prompt]) -> Scorer:
  """Scores texts as answers to the prompts; several processes as in training, see `shares`."""
  columns = column_names(prompts)

  def score(indices: Sequence[int], texts: Sequence[str]) -> np.ndarray:
    rows, values = reward_inputs([prompts[i] for i in indices], 1, columns=columns)

    def part(first: int, stop: int) -> np.ndarray:
      own = {name: column[first:stop] for name, column in values.items()}
      return call_reward(reward, rows[first:stop], texts[first:stop], own)

    return shared_scores(reward, len(rows), part)

  return score


def engine_generator(
  policy: Policy, encoded: EncodedPrompts, config: SearchConfig
) -> EngineGenerator:
  """Generates with the rollout engine."""
  sampling = build.sampler_config(config.sampling)

  def engine(length: int) -> RolloutEngine:
    return RolloutEngine(
      policy,
      dataclasses.replace(sampling, max_completion_length=length),
      max_rows=config.rows_per_call,
      smallest_prompt=max(map(len, encoded.tokens)) + config.state_length,
      mesh=build.run_mesh(RunConfig(mesh=config.mesh)),
    )

  return EngineGenerator(
    engine,
    policy.params,
    encoded.tokens,
    key=make_key(config.seed),
    max_length=config.sampling.max_completion_length,
    prompt_ids=[prompt.id for prompt in encoded.prompts],
    group_size=config.group_size,
    rows_per_call=config.rows_per_call,
  )
