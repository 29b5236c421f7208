"""The experiments on sums with a small model made here: minutes on a laptop, many seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from tea_jax.runs.config import RunConfig
from tea_jax.runs.groups import (
  CheckpointConfig,
  DataConfig,
  EvaluationConfig,
  LoggingConfig,
  PolicyConfig,
  RolloutConfig,
  ValidationConfig,
)
from tea_jax.runs.objective import ObjectiveConfig
from tea_jax.runs.optimizer import OptimizerConfig
from tea_jax.runs.presets import Preset
from tea_jax.runs.supervised import PairConfig, SupervisedConfig, SupervisedObjectiveConfig
from tea_jax.studies.compute_aligned import compared, published, sums
from tea_jax.studies.compute_aligned.branches import BranchExperiment
from tea_jax.studies.compute_aligned.rewarded_runs import RewardedExperiment

_MODEL = PolicyConfig(name="sums-gpt2", remat="none")
_BARE = "tea_jax.studies.compute_aligned.sums:bare_sums"
_SFT = SupervisedConfig(
  run_folder="runs/cat-sft-small",
  steps=1000,
  validation_every=250,
  model=_MODEL,
  data=PairConfig(
    pairs=_BARE,
    target="answer",
    chat=False,
    max_length=16,
    batch_size=64,
    num_validation=256,
    num_test=256,
  ),
  optimizer=OptimizerConfig(learning_rate=2e-3),
  checkpoint=CheckpointConfig(every=250, keep=1, final_policy="last"),
  logging=LoggingConfig(live=False),
)
# Few pairs, seen thirty times: cross-entropy learns them by heart, and what it then loses on
# held-out prompts is what the objectives differ in.
_SFT_FEW = dataclasses.replace(
  _SFT,
  steps=500,
  data=dataclasses.replace(_SFT.data, limit=1000),
  optimizer=OptimizerConfig(learning_rate=2e-3, schedule="linear"),
)
_TWO_WARM_UPS = "runs/cat-rl-warm-ups-small"

_PASS = BranchExperiment(
  "A small model on sums: cross-entropy against Pass@N",
  _SFT_FEW,
  warm_up_steps=500,
  objectives=compared.PASS_OBJECTIVES,
  seeds=(0,),
  sampling=RolloutConfig(num_rollouts=64, max_completion_length=6),
  evaluation=EvaluationConfig(num_prompts=256, num_samples=128),
  reward=sums.ANSWER_REWARD,
  make_policy=sums.sum_policy,
  published=published.SUPERVISED_PASS,
)

SMALL_BRANCHES: Mapping[str, BranchExperiment] = {
  "cat-sft-small": _PASS,
  "cat-majority-small": dataclasses.replace(
    _PASS,
    about="A small model on sums: cross-entropy against majority votes",
    config=dataclasses.replace(_SFT_FEW, run_folder="runs/cat-majority-small"),
    objectives=compared.MAJORITY_OBJECTIVES,
    metric="majority",
    published=published.SUPERVISED_MAJORITY,
  ),
}


def _of_two(last: str, objective: SupervisedObjectiveConfig) -> tuple[SupervisedConfig, ...]:
  """A shared warm-up by cross-entropy, and one by the objective after it."""
  shared = dataclasses.replace(_SFT_FEW, run_folder=f"{_TWO_WARM_UPS}/warm_up")
  folder = f"{_TWO_WARM_UPS}/warm_up-{last}"
  return shared, dataclasses.replace(_SFT_FEW, run_folder=folder, objective=objective)


_RL = RunConfig(
  run_folder="runs/cat-rl-small",
  steps=500,
  model=_MODEL,
  data=DataConfig(prompts=_BARE, chat=False, max_prompt_length=12, prompts_per_step=16),
  reward=sums.ANSWER_REWARD,
  sampling=RolloutConfig(num_rollouts=16, max_completion_length=6),
  objective=ObjectiveConfig(kl_coefficient=0.01),
  optimizer=OptimizerConfig(learning_rate=3e-4),
  checkpoint=CheckpointConfig(every=100, keep=1, final_policy="last"),
  validation=ValidationConfig(every=0),
  evaluation=EvaluationConfig(num_prompts=256, num_samples=64),
  logging=LoggingConfig(live=False, samples_every=100),
)

_RULES = RewardedExperiment(
  Preset(
    "A small model on sums: GRPO against Pass@N and majority votes",
    _RL,
    compared.PASS_RULES + compared.VOTE_RULES,
  ),
  {"cross_entropy": (dataclasses.replace(_SFT, run_folder="runs/cat-rl-small/warm_up"),)},
  budgets=(1, 4, 8, 16, 32, 64),
  make_policy=sums.sum_policy,
  published={"pass": published.REWARDED_PASS, "majority": published.REWARDED_MAJORITY},
)

SMALL_REWARDED: Mapping[str, RewardedExperiment] = {
  "cat-rl-small": _RULES,
  "cat-rl-small-all": _RULES.with_preset(
    Preset(
      "A small model on sums: every rule that applies, three seeds",
      dataclasses.replace(_RL, run_folder="runs/cat-rl-small-all"),
      compared.EVERY_RULE,
      seeds=(0, 1, 2),
    )
  ),
  "cat-rl-warm-ups-small": RewardedExperiment(
    Preset(
      "A small model on sums: the same GRPO after cross-entropy and after Pass@16",
      dataclasses.replace(_RL, run_folder=_TWO_WARM_UPS),
      ("grpo:normalize=true",),
      seeds=(0, 1, 2),
    ),
    {
      "cross_entropy": _of_two("cross_entropy", SupervisedObjectiveConfig()),
      "pass_at_16": _of_two("pass_at_16", SupervisedObjectiveConfig("pass_at_n", budget=16)),
    },
    budgets=(1, 2, 4, 8, 16, 32, 64),
    metrics=("pass",),
    make_policy=sums.sum_policy,
    published={"pass": published.WARM_UPS_PASS},
  ),
}
