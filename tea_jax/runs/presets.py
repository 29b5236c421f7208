"""Named experiments: a run config, the rules that are compared on it, and the seeds.

Settings that the paper's text does not give (learning rate, KL coefficient, prompts of a step,
lengths) are ours, marked [ours], and flags like everything else.
"""

from __future__ import annotations

import dataclasses

from tea_jax.advantages import AdvantageSpec
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
from tea_jax.runs.reward import RewardConfig


@dataclasses.dataclass(frozen=True)
class Preset:
  """A named experiment.

  Attributes:
    about: one line for `--help`.
    config: of every run; rule and seed are replaced by those below.
    rules: compared on the same seeds, prompts and budgets, as `AdvantageSpec.parse` reads them.
    seeds: of the runs.
  """

  about: str
  config: RunConfig
  rules: tuple[str, ...] = ("tea", "grpo")
  seeds: tuple[int, ...] = (0,)


_QUICKSTART = RunConfig(
  run_folder="runs/quickstart",
  steps=40,
  # One group a step: what 40 steps of two rules leave time and memory for on a laptop.
  # Products' results are kept for the backward pass: 7 % less time an update than with "full" for
  # 0.2 GiB more; "none" takes 1 GiB more again and is no faster.
  model=PolicyConfig(name="smollm2-135m-instruct", remat="dots"),
  data=DataConfig(prompts="openers", chat=False, max_prompt_length=24, prompts_per_step=1),
  reward=RewardConfig(functions=("lexicon",)),
  sampling=RolloutConfig(num_rollouts=32, max_completion_length=24),
  advantage=AdvantageSpec("tea"),
  # In units of reward (standard deviation in a group: 2.3). Without a penalty all rules end at the
  # same text, and the mean is there first; with it, samples stay diverse.
  objective=ObjectiveConfig(kl_coefficient=2.0),
  optimizer=OptimizerConfig(learning_rate=2e-5, warmup_steps=4),
  checkpoint=CheckpointConfig(every=20, keep=1, final_policy="last"),
  validation=ValidationConfig(every=0),
  evaluation=EvaluationConfig(num_prompts=16, num_samples=128),
  logging=LoggingConfig(samples_every=20),
)

_PAPER = RunConfig(
  run_folder="runs/paper-main",
  steps=450,
  model=PolicyConfig(name="meta-llama/Llama-3.2-1B-Instruct", compute_dtype="bfloat16"),
  data=DataConfig(
    prompts="ultrafeedback",
    chat=True,
    max_prompt_length=1024,  # [ours]
    prompts_per_step=8,  # [ours]
  ),
  reward=RewardConfig(functions=("Skywork/Skywork-Reward-V2-Llama-3.1-8B",)),
  sampling=RolloutConfig(num_rollouts=64, max_completion_length=512),  # [ours]: 512
  advantage=AdvantageSpec("tea"),
  objective=ObjectiveConfig(kl_coefficient=0.01),  # [ours]
  optimizer=OptimizerConfig(
    learning_rate=1e-6,  # [ours]
    warmup_steps=10,  # [ours]
    micro_batch_rollouts=16,
  ),
  checkpoint=CheckpointConfig(every=25, keep=2, final_policy="best"),
  validation=ValidationConfig(every=25, num_prompts=128, num_samples=32, top=10),
  evaluation=EvaluationConfig(num_prompts=250, num_samples=256),
)


def _change(config: RunConfig, **groups: object) -> RunConfig:
  """`config` with some fields of its groups replaced."""
  changed = {}
  for name, value in groups.items():
    old = getattr(config, name)
    changed[name] = dataclasses.replace(old, **value) if isinstance(value, dict) else value
  return dataclasses.replace(config, **changed)


_PAPER_RULES = (
  "tea",
  "prefix_tea",
  "grpo",
  "grpo:normalize=true",
  "bon_max_mean",
  "bon_max_second",
  "max_at_k:k=32,normalize=true",
  "bon_rl",
  "cat_best_of_n",
)


def _paper(folder: str, **groups: object) -> RunConfig:
  return _change(_PAPER, run_folder=f"runs/{folder}", **groups)


# Half of a group as the tail: less noise than a quarter on one group a step (README).
_QUICKSTART_RULES = ("tea:tail_fraction=0.5", "grpo")

PRESETS: dict[str, Preset] = {
  "quickstart": Preset(
    "SmolLM2-135M on a laptop: TEA against GRPO in minutes", _QUICKSTART, rules=_QUICKSTART_RULES
  ),
  "quickstart-3seeds": Preset(
    "the quickstart with three seeds, more steps and prompts: 90 minutes on two cores",
    _change(
      _QUICKSTART,
      run_folder="runs/quickstart-3seeds",
      steps=60,
      evaluation={"num_prompts": 64, "num_samples": 128},
    ),
    rules=_QUICKSTART_RULES,
    seeds=(0, 1, 2),
  ),
  "paper-main": Preset(
    "UltraFeedback, Llama-3.2-1B-Instruct, Skywork reward model, m = 64, 450 steps",
    _PAPER,
    rules=_PAPER_RULES,
  ),
  **{
    f"paper-scaling-m{m}": Preset(
      f"training with m = {m} rollouts, evaluated up to best-of-512",
      _paper(
        f"paper-scaling-m{m}",
        sampling={"num_rollouts": m},
        evaluation={"num_samples": 512, "budgets": (128, 256, 512)},
        optimizer={"micro_batch_rollouts": 16},
      ),
    )
    for m in (16, 32, 64)
  },
  "paper-budget": Preset(
    "ablation over the budget N that TEA extrapolates to",
    _paper("paper-budget"),
    rules=("tea:budget=128", "tea:budget=256", "tea:budget=512", "grpo"),
  ),
  "paper-hh-helpful": Preset(
    "helpful dialogues of HH-RLHF", _paper("paper-hh-helpful", data={"prompts": "hh-helpful"})
  ),
  "paper-qwen3-4b": Preset(
    "another family: Qwen3-4B-Instruct-2507",
    _paper("paper-qwen3-4b", model={"name": "Qwen/Qwen3-4B-Instruct-2507"}),
  ),
  "paper-llama3-8b-lora": Preset(
    "a larger model: Llama-3.1-8B-Instruct with low-rank adapters",
    _paper(
      "paper-llama3-8b-lora",
      model={"name": "meta-llama/Llama-3.1-8B-Instruct", "lora_rank": 16, "lora_alpha": 32.0},
      optimizer={"learning_rate": 1e-5},  # [ours]
    ),
  ),
}


def get_preset(name: str) -> Preset:
  """The named preset.

  Raises:
    ValueError: for an unknown name, listing those that exist.
  """
  if name not in PRESETS:
    raise ValueError(f"unknown preset {name!r}; known: {', '.join(PRESETS)}.")
  return PRESETS[name]
