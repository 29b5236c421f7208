"""The protein experiments by name; settings that are ours are marked [ours]."""

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
from tea_jax.runs.reward import RewardConfig
from tea_jax.runs.supervised import PairConfig, SupervisedConfig
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
  steps=300,
  validation_every=300,
  model=_SMALL,
  data=PairConfig(pairs="natural", chat=False, max_length=64, batch_size=64),
  optimizer=OptimizerConfig(learning_rate=2e-3),
  checkpoint=CheckpointConfig(every=100, keep=1, final_policy="last"),
  logging=LoggingConfig(live=False),
)
# The paper's KL coefficients weigh the mean over a completion's tokens, ours their sum: its 0.3 is
# 0.3 / 44 here for completions of 44 tokens.
_PROTEIN = RunConfig(
  run_folder="runs/cat-protein",
  steps=150,
  model=_SMALL,
  data=DataConfig(prompts="start", chat=False, max_prompt_length=64, prompts_per_step=1),
  reward=RewardConfig(functions=("hydrophobic_valley",)),
  sampling=RolloutConfig(num_rollouts=32, max_completion_length=48),
  objective=ObjectiveConfig(kl_coefficient=0.3 / 44),
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
  objective=ObjectiveConfig(kl_coefficient=0.05 / 32),
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
        steps=300,
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
        objective=ObjectiveConfig(kl_coefficient=0.3 / 64),
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
        objective=ObjectiveConfig(kl_coefficient=0.05 / 64),
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
