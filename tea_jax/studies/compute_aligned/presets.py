"""The experiments of compute-aligned training by name; settings that are ours are marked [ours]."""

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
  RewardConfig,
  RolloutConfig,
  ValidationConfig,
)
from tea_jax.runs.objective import ObjectiveConfig
from tea_jax.runs.optimizer import OptimizerConfig
from tea_jax.runs.presets import Preset
from tea_jax.runs.supervised import PairConfig, SupervisedConfig
from tea_jax.studies.compute_aligned import published
from tea_jax.studies.compute_aligned.branches import BranchExperiment
from tea_jax.studies.compute_aligned.protein_runs import ProteinExperiment

_CAT = "cat_best_of_n:budget={},quantile={},weight_normalization=batch"
# The mean first: the others are compared with it.
PROTEIN_RULES = (
  "grpo:normalize=true",
  _CAT.format(8, "tracked"),
  "tea:budget=64",
  "max_at_k:k=16,normalize=true",
)
ALL_PROTEIN_RULES = (
  "grpo:normalize=true",
  *(_CAT.format(budget, "tracked") for budget in (2, 4, 8)),
  "tea:budget=64",
  "prefix_tea:budget=64",
  "blended_influence:budget=64",
  "max_at_k:k=16,normalize=true",
)

_SMALL = PolicyConfig(name="protein-gpt2", remat="none")
_WARM_UP = SupervisedConfig(
  run_folder="runs/cat-protein/warm_up",
  steps=500,
  validation_every=500,
  model=_SMALL,
  data=PairConfig(pairs="natural", chat=False, max_length=64, batch_size=64),
  optimizer=OptimizerConfig(learning_rate=2e-3, schedule="cosine", warmup_steps=20),
  checkpoint=CheckpointConfig(every=100, keep=1, final_policy="last"),
  logging=LoggingConfig(live=False),
)
_PROTEIN = RunConfig(
  run_folder="runs/cat-protein",
  steps=300,
  model=_SMALL,
  data=DataConfig(prompts="start", chat=False, max_prompt_length=64, prompts_per_step=1),
  reward=RewardConfig(functions=("hydrophobic_valley",)),
  sampling=RolloutConfig(num_rollouts=32, max_completion_length=48),
  objective=ObjectiveConfig(kl_coefficient=0.05),  # [ours]: 0.3 in the paper
  optimizer=OptimizerConfig(learning_rate=1e-4),  # [ours]: 1e-5 for ProtGPT2
  checkpoint=CheckpointConfig(every=100, keep=1, final_policy="last"),
  validation=ValidationConfig(every=0),
  evaluation=EvaluationConfig(num_prompts=1, num_samples=1024),
  logging=LoggingConfig(live=False, samples_every=50),
)
_CONDITIONAL = dataclasses.replace(
  _PROTEIN,
  run_folder="runs/cat-protein-conditional",
  reward=RewardConfig(functions=("hydrophobic_complement",)),
  sampling=RolloutConfig(num_rollouts=25, max_completion_length=32),
  evaluation=EvaluationConfig(num_prompts=64, num_samples=64),
)
_CONDITIONAL_RULES = (
  "grpo:normalize=true",
  *(_CAT.format(budget, "rank") for budget in (2, 4, 8)),
  "tea:budget=64",
  "max_at_k:k=16,normalize=true",
)
_PROTGPT2 = PolicyConfig(name="nferruz/ProtGPT2")
_PAPER_OPTIMIZER = OptimizerConfig(learning_rate=1e-5)

PROTEINS: Mapping[str, ProteinExperiment] = {
  "cat-protein": ProteinExperiment(
    Preset("Proteins beyond the valley: the mean against the best of N", _PROTEIN, PROTEIN_RULES),
    _WARM_UP,
  ),
  "cat-protein-all": ProteinExperiment(
    Preset(
      "Proteins beyond the valley: every tail rule, five seeds",
      dataclasses.replace(_PROTEIN, run_folder="runs/cat-protein-all"),
      ALL_PROTEIN_RULES,
      seeds=(0, 1, 2, 3, 4),
    ),
    dataclasses.replace(_WARM_UP, run_folder="runs/cat-protein-all/warm_up"),
  ),
  "cat-protein-conditional": ProteinExperiment(
    Preset("Complementary proteins: best of N for an input", _CONDITIONAL, _CONDITIONAL_RULES),
    dataclasses.replace(_WARM_UP, run_folder="runs/cat-protein-conditional/warm_up"),
    conditional=True,
    second_warm_up=dataclasses.replace(
      _WARM_UP,
      run_folder="runs/cat-protein-conditional/gold_pairs",
      steps=60,
      validation_every=0,
      data=PairConfig(pairs="gold", chat=False, max_length=96, batch_size=32),
      optimizer=OptimizerConfig(learning_rate=1e-3),
    ),
  ),
  "cat-protein-paper": ProteinExperiment(
    Preset(
      "ProtGPT2 beyond the valley, the paper's settings",
      dataclasses.replace(
        _PROTEIN,
        run_folder="runs/cat-protein-paper",
        model=_PROTGPT2,
        data=DataConfig(
          prompts="<|endoftext|>", chat=False, max_prompt_length=8, prompts_per_step=1
        ),
        sampling=RolloutConfig(
          num_rollouts=32,
          max_completion_length=64,
          temperature=1.2,
          top_k=50,
          allow_truncated_sampling=True,
        ),
        objective=ObjectiveConfig(kl_coefficient=0.3),
        optimizer=_PAPER_OPTIMIZER,
      ),
      ("grpo:normalize=true", *(_CAT.format(budget, "tracked") for budget in (2, 4, 8))),
    ),
    None,
  ),
  "cat-protein-conditional-paper": ProteinExperiment(
    Preset(
      "ProtGPT2 on complementary proteins, the paper's settings",
      dataclasses.replace(
        _CONDITIONAL,
        run_folder="runs/cat-protein-conditional-paper",
        model=_PROTGPT2,
        sampling=RolloutConfig(num_rollouts=25, max_completion_length=64, temperature=1.3),
        optimizer=OptimizerConfig(learning_rate=2e-6),
      ),
      ("grpo:normalize=true", *(_CAT.format(budget, "rank") for budget in (2, 4, 8))),
    ),
    None,
    conditional=True,
    second_warm_up=dataclasses.replace(
      _WARM_UP,
      run_folder="runs/cat-protein-conditional-paper/gold_pairs",
      steps=60,
      validation_every=0,
      model=_PROTGPT2,
      data=PairConfig(pairs="gold", chat=False, max_length=128, batch_size=25),
      optimizer=OptimizerConfig(learning_rate=5e-6),
    ),
  ),
}

_SUMS = "reasoning_gym:chain_sum?min_terms=3&max_terms=3&min_digits=2&max_digits=2&size=4000"
_PASS_OBJECTIVES = (
  "cross_entropy",
  *(f"pass_at_n:budget={budget}" for budget in (4, 16, 64)),
)
_MAJORITY_OBJECTIVES = (
  "cross_entropy",
  "majority:budget=8,threshold=3",
  "majority:budget=16,threshold=4",
  "majority:budget=64,threshold=26",
)
_SFT = SupervisedConfig(
  run_folder="runs/cat-sft-quickstart",
  steps=60,
  validation_every=30,
  model=PolicyConfig(name="smollm2-135m-instruct", remat="dots"),
  data=PairConfig(pairs=_SUMS, target="answer", chat=False, max_length=48, batch_size=16),
  optimizer=OptimizerConfig(learning_rate=5e-5),
  checkpoint=CheckpointConfig(every=30, keep=1, final_policy="last"),
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
_MATH_SAMPLING = RolloutConfig(
  num_rollouts=64,
  max_completion_length=512,
  temperature=0.8,
  top_p=0.95,
  allow_truncated_sampling=True,
)

BRANCHES: Mapping[str, BranchExperiment] = {
  "cat-sft-quickstart": BranchExperiment(
    "SmolLM2 on sums: cross-entropy against Pass@N",
    _SFT,
    warm_up_steps=60,
    objectives=_PASS_OBJECTIVES,
    seeds=(0,),
    sampling=RolloutConfig(num_rollouts=32, max_completion_length=8),
    evaluation=EvaluationConfig(num_prompts=64, num_samples=128),
    reward=RewardConfig(functions=("reasoning_gym",), answer_pattern=r"^\s*(-?\d+)\s*$"),
    published=published.SUPERVISED_PASS,
  ),
  "cat-sft-math": BranchExperiment(
    "Mistral-7B on MATH: cross-entropy against Pass@N, the paper's settings",
    _SFT_MATH,
    warm_up_steps=2500,
    objectives=_PASS_OBJECTIVES,
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
    objectives=_MAJORITY_OBJECTIVES,
    seeds=(0,),
    sampling=_MATH_SAMPLING,
    evaluation=EvaluationConfig(num_prompts=500, num_samples=128),
    reward=RewardConfig(functions=("boxed_math",)),
    metric="majority",
    published=published.SUPERVISED_MAJORITY,
  ),
}
