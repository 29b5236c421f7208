"""Table 13 on a policy of a run config: its model, prompts, reward and sampler."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping, Sequence

from tea_jax.advantages import GroupRule
from tea_jax.evaluation.identity import evaluation_spec
from tea_jax.models.policy import Policy
from tea_jax.rewards import RewardFunction
from tea_jax.rollout.engine import RolloutEngine
from tea_jax.rollout.sampling import SamplingConfig
from tea_jax.runs import build
from tea_jax.runs.config import RunConfig
from tea_jax.runs.datasets import Splits, encode, load_splits
from tea_jax.runtime import processes
from tea_jax.studies.alignment.estimators import Alignment, accepts_groups
from tea_jax.studies.alignment.policy import policy_alignment
from tea_jax.studies.alignment.pools import sample_pools


def policy_study(
  config: RunConfig,
  rules: Mapping[str, GroupRule],
  *,
  num_rollouts: Sequence[int],
  num_seeds: int,
  budget: int,
  num_prompts: int,
  pool_size: int,
  folder: str | pathlib.Path,
  seed: int = 0,
  memory_gb: float = 6.0,
  policy: Policy | None = None,
  splits: Splits | None = None,
  reward: RewardFunction | None = None,
  say: Callable[[str], None] = print,
) -> dict[int, dict[str, Alignment]]:
  """Alignment of every rule on pools drawn from a policy, by group size.

  Args:
    config: gives model, prompts, reward, temperature and completion length.
    rules: need rewards (and a key) only.
    num_rollouts, num_seeds, budget, seed: see `policy_alignment`.
    num_prompts: training prompts that one gradient is summed over.
    pool_size: rollouts of each.
    memory_gb: for gradient sums and scores; what does not fit together takes another pass.
    folder: keeps the pools; an interrupted study goes on with the prompt that is missing.
    policy, splits, reward: instead of those of the config.
    say: told what happens.

  Raises:
    ValueError: if there are too few prompts, a group exceeds the pool, or a rule needs more than
      rewards or takes none of the group sizes.
  """
  processes.require_one("policy_study")
  if max(num_rollouts) > pool_size:
    raise ValueError(f"num_rollouts={max(num_rollouts)} exceeds pool_size={pool_size}.")
  for name, rule in rules.items():
    if not any(accepts_groups(name, rule, size) for size in num_rollouts):
      raise ValueError(f"rule {name!r} takes none of the group sizes {tuple(num_rollouts)}.")
  splits = splits or load_splits(config.data)
  chosen = list(splits["train"])[:num_prompts]
  if len(chosen) < num_prompts:
    raise ValueError(f"num_prompts={num_prompts}, but there are {len(chosen)} training prompts.")
  policy = policy or build.load_run_policy(config)
  prompts = encode(chosen, policy, config.data, config.sampling)
  sampling = SamplingConfig(
    temperature=config.sampling.temperature,
    max_completion_length=config.sampling.max_completion_length,
  )
  longest = max(map(len, prompts.tokens))
  reward = reward or config.reward.build()
  pools = sample_pools(
    RolloutEngine(policy, sampling, smallest_prompt=longest, mesh=build.run_mesh(config)),
    policy.params,
    prompts,
    reward,
    folder=pathlib.Path(folder) / "pools",
    pool_size=pool_size,
    seed=seed,
    spec=evaluation_spec(
      policy.params, model=config.model, data=config.data, sampling=config.sampling, seed=seed
    ),
    progress=lambda done, total: say(f"pools: {done} of {total} prompts"),
  )
  return policy_alignment(
    policy,
    policy.params,
    pools,
    rules,
    num_rollouts=num_rollouts,
    num_seeds=num_seeds,
    budget=budget,
    temperature=config.sampling.temperature,
    seed=seed,
    memory=int(memory_gb * 1e9),
    progress=lambda done, total: say(f"gradients: {done} of {total} chunks"),
  )
