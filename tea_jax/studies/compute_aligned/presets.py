"""Compute-aligned training on answers that can be checked: the experiments by name.

Settings that are ours are marked [ours]; those of the quickstarts all are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from tea_jax.advantages import AdvantageSpec
from tea_jax.runs.config import RunConfig
from tea_jax.runs.groups import (
  CheckpointConfig,
  DataConfig,
  EvaluationConfig,
  PolicyConfig,
  RolloutConfig,
  ValidationConfig,
)
from tea_jax.runs.objective import ObjectiveConfig
from tea_jax.runs.optimizer import OptimizerConfig
from tea_jax.runs.presets import Preset
from tea_jax.runs.reward import RewardConfig
from tea_jax.runs.supervised import PairConfig, SupervisedConfig, SupervisedObjectiveConfig
from tea_jax.studies.compute_aligned import compared, published, sums
from tea_jax.studies.compute_aligned.branches import BranchExperiment
from tea_jax.studies.compute_aligned.rewarded_runs import RewardedExperiment
from tea_jax.studies.compute_aligned.small_presets import SMALL_BRANCHES, SMALL_REWARDED

_SFT = SupervisedConfig(
  run_folder="runs/cat-sft-quickstart",
  steps=40,
  validation_every=40,
  model=PolicyConfig(name="smollm2-135m-instruct", remat="dots"),
  data=PairConfig(pairs=sums.TASK, target="answer", chat=False, max_length=48, batch_size=16),
  optimizer=OptimizerConfig(learning_rate=5e-5),
  checkpoint=CheckpointConfig(every=30, keep=1, final_policy="last"),
)
# Few pairs, seen ten times: cross-entropy learns them by heart, and what it then loses on held-out
# prompts is what the objectives differ in. Of 4,000 pairs, less than one epoch shows nothing. Two
# terms: of three, 3 samples in 100 are right, and an objective has nothing to lose at one sample.
_SFT_FEW = dataclasses.replace(
  _SFT,
  steps=48,
  validation_every=48,
  data=dataclasses.replace(_SFT.data, pairs=sums.TWO_TERMS, limit=128),
)
_SFT_MATH = dataclasses.replace(
  _SFT,
  run_folder="runs/cat-sft-math",
  steps=0,
  epochs=3,
  model=PolicyConfig(
    name="mistralai/Mistral-7B-Instruct-v0.2",
    compute_dtype="bfloat16",
    lora_rank=16,
    lora_alpha=16.0,
    lora_targets=("query", "key", "value", "output"),
  ),
  data=PairConfig(
    pairs="math", target="boxed_answer", limit=5000, max_length=1024, batch_size=4, num_test=500
  ),
  optimizer=OptimizerConfig(
    learning_rate=5e-6,
    schedule="linear",
    weight_decay=0.01,
    max_gradient_norm=0.3,
    micro_batch_rollouts=1,
  ),
)
_WORKED = dataclasses.replace(
  _SFT,
  run_folder="runs/cat-majority-quickstart",
  data=dataclasses.replace(
    _SFT.data,
    pairs="tea_jax.studies.compute_aligned.sums:worked_sums",
    target="solution",
    max_length=80,
  ),
)
_MATH_SAMPLING = RolloutConfig(
  num_rollouts=64,
  max_completion_length=512,
  temperature=0.8,
  top_p=0.95,
  allow_truncated_sampling=True,
)

BRANCHES: Mapping[str, BranchExperiment] = {
  **SMALL_BRANCHES,
  "cat-sft-quickstart": BranchExperiment(
    "SmolLM2 on sums: cross-entropy against Pass@N",
    _SFT_FEW,
    warm_up_steps=32,
    objectives=compared.PASS_OBJECTIVES,
    seeds=(0,),
    sampling=RolloutConfig(num_rollouts=32, max_completion_length=8),
    evaluation=EvaluationConfig(num_prompts=64, num_samples=64),
    reward=sums.ANSWER_REWARD,
    published=published.SUPERVISED_PASS,
  ),
  "cat-majority-quickstart": BranchExperiment(
    "SmolLM2 on worked sums: cross-entropy against majority votes",
    _WORKED,
    warm_up_steps=60,
    objectives=compared.MAJORITY_OBJECTIVES,
    seeds=(0,),
    sampling=RolloutConfig(num_rollouts=32, max_completion_length=40),
    evaluation=EvaluationConfig(num_prompts=32, num_samples=64),
    reward=sums.WORKED_REWARD,
    metric="majority",
    published=published.SUPERVISED_MAJORITY,
  ),
  "cat-sft-math": BranchExperiment(
    "Mistral-7B on MATH: cross-entropy against Pass@N, the paper's settings",
    _SFT_MATH,
    warm_up_steps=2500,
    objectives=compared.PASS_OBJECTIVES,
    seeds=(0,),
    sampling=_MATH_SAMPLING,
    evaluation=EvaluationConfig(num_prompts=500, num_samples=64),
    reward=RewardConfig(functions=("boxed_math",)),
    published=published.SUPERVISED_PASS,
  ),
  "cat-majority-math": BranchExperiment(
    "Mistral-7B on MATH with solutions: cross-entropy against majority votes",
    dataclasses.replace(
      _SFT_MATH,
      run_folder="runs/cat-majority-math",
      data=dataclasses.replace(_SFT_MATH.data, target="solution", levels=(1, 2, 3)),
    ),
    warm_up_steps=2500,
    objectives=compared.MAJORITY_OBJECTIVES,
    seeds=(0,),
    sampling=_MATH_SAMPLING,
    evaluation=EvaluationConfig(num_prompts=500, num_samples=128),
    reward=RewardConfig(functions=("boxed_math",)),
    metric="majority",
    published=published.SUPERVISED_MAJORITY,
  ),
}


def _warm_up(
  config: SupervisedConfig, folder: str, steps: int = 60, **objective: Any
) -> SupervisedConfig:
  return dataclasses.replace(
    config, run_folder=folder, steps=steps, objective=SupervisedObjectiveConfig(**objective)
  )


# Three terms are right in 3 of 100 samples after the warm-up: 60 steps of GRPO moved nothing.
_SFT_TWO = dataclasses.replace(_SFT, data=dataclasses.replace(_SFT.data, pairs=sums.TWO_TERMS))
_RL = RunConfig(
  run_folder="runs/cat-rl-quickstart",
  steps=60,
  model=_SFT.model,
  data=DataConfig(prompts=sums.TWO_TERMS, chat=False, max_prompt_length=40, prompts_per_step=4),
  reward=sums.ANSWER_REWARD,
  sampling=RolloutConfig(num_rollouts=16, max_completion_length=8),
  objective=ObjectiveConfig(kl_coefficient=0.05),
  optimizer=OptimizerConfig(learning_rate=2e-5),
  checkpoint=CheckpointConfig(every=30, keep=1, final_policy="last"),
  validation=ValidationConfig(every=0),
  evaluation=EvaluationConfig(num_prompts=64, num_samples=128),
)
_RL_MATH = RunConfig(
  run_folder="runs/cat-rl-math",
  advantage=AdvantageSpec("grpo"),
  steps=1250,
  model=PolicyConfig(
    name="mistralai/Mistral-7B-Instruct-v0.2",
    compute_dtype="bfloat16",
    lora_rank=16,
    lora_alpha=32.0,
    lora_targets=("query", "value"),
  ),
  data=DataConfig(prompts="math", max_prompt_length=256, prompts_per_step=4),
  reward=RewardConfig(functions=("boxed_math",)),
  sampling=dataclasses.replace(_MATH_SAMPLING, num_rollouts=4, max_completion_length=300),
  objective=ObjectiveConfig(kl_coefficient=0.05),
  optimizer=OptimizerConfig(learning_rate=1e-6),
  checkpoint=CheckpointConfig(every=100, keep=1, final_policy="last"),
  validation=ValidationConfig(every=0),
  evaluation=EvaluationConfig(num_prompts=150, num_samples=32),
)
# Full solutions: the policy must reason before its answer.
_RL_MATH_WARM_UP = dataclasses.replace(
  _SFT_MATH, data=dataclasses.replace(_SFT_MATH.data, target="solution"), epochs=1
)

_RULES = RewardedExperiment(
  Preset(
    "SmolLM2 on sums: GRPO against Pass@N and majority votes",
    _RL,
    compared.PASS_RULES + compared.VOTE_RULES,
  ),
  {"cross_entropy": (_warm_up(_SFT_TWO, "runs/cat-rl-quickstart/warm_up"),)},
  budgets=(1, 4, 8, 16, 32),
  published={"pass": published.REWARDED_PASS, "majority": published.REWARDED_MAJORITY},
)

REWARDED: Mapping[str, RewardedExperiment] = {
  **SMALL_REWARDED,
  "cat-rl-quickstart": _RULES,
  "cat-rl-all": _RULES.with_preset(
    Preset(
      "SmolLM2 on sums: every rule that applies, three seeds",
      dataclasses.replace(_RL, run_folder="runs/cat-rl-all"),
      compared.EVERY_RULE,
      seeds=(0, 1, 2),
    )
  ),
  "cat-rl-warm-ups": RewardedExperiment(
    Preset(
      "SmolLM2 on sums: the same GRPO after cross-entropy and after Pass@16",
      dataclasses.replace(_RL, run_folder="runs/cat-rl-warm-ups"),
      ("grpo:normalize=true",),
    ),
    {
      "cross_entropy": (
        _warm_up(_SFT_TWO, "runs/cat-rl-warm-ups/warm_up"),
        _warm_up(_SFT_TWO, "runs/cat-rl-warm-ups/warm_up-cross_entropy"),
      ),
      "pass_at_16": (
        _warm_up(_SFT_TWO, "runs/cat-rl-warm-ups/warm_up"),
        _warm_up(_SFT_TWO, "runs/cat-rl-warm-ups/warm_up-pass_at_16", name="pass_at_n", budget=16),
      ),
    },
    budgets=(1, 2, 4, 8, 16),
    metrics=("pass",),
    published={"pass": published.WARM_UPS_PASS},
  ),
  "cat-rl-math": RewardedExperiment(
    Preset(
      "Mistral-7B on MATH: GRPO against Pass@N, the paper's settings",
      _RL_MATH,
      compared.PAPER_PASS_RULES,
    ),
    {"cross_entropy": (_warm_up(_RL_MATH_WARM_UP, "runs/cat-rl-math/warm_up", steps=0),)},
    budgets=(1, 8, 16, 32),
    metrics=("pass",),
    sampling=dataclasses.replace(_RL_MATH.sampling, temperature=0.7, top_p=0.9),
    published={"pass": published.REWARDED_PASS},
  ),
  "cat-rl-majority-math": RewardedExperiment(
    Preset(
      "Mistral-7B on MATH: GRPO against majority votes, the paper's settings",
      dataclasses.replace(
        _RL_MATH,
        run_folder="runs/cat-rl-majority-math",
        sampling=dataclasses.replace(_RL_MATH.sampling, num_rollouts=8),
        objective=ObjectiveConfig(),
        evaluation=EvaluationConfig(num_prompts=150, num_samples=16),
      ),
      (compared.PASS_RULES[0], *compared.PAPER_VOTE_RULES),
    ),
    {
      "cross_entropy": (
        dataclasses.replace(
          _warm_up(_RL_MATH_WARM_UP, "runs/cat-rl-majority-math/warm_up", steps=0),
          data=dataclasses.replace(_RL_MATH_WARM_UP.data, levels=(1, 2, 3)),
          epochs=3,
        ),
      )
    },
    budgets=(1, 4, 8, 16),
    metrics=("majority",),
    published={"majority": published.REWARDED_MAJORITY},
  ),
}
