"""Tunix's own GRPO learner with our rules: a tiny Qwen3, three steps, on the CPU."""

import jax
import numpy as np
import pytest

pytest.importorskip("tunix")

import optax
from flax import nnx
from tunix.models.qwen3 import model as qwen3
from tunix.rl import function_registry, rl_cluster
from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
from tunix.rl.rollout import base_rollout

import tea_jax
from tea_jax.integrations import tunix
from tests.integrations.tiny_torch import ALPHABET, letter_tokenizer, vowels

pytestmark = pytest.mark.filterwarnings("ignore")
TEA = tea_jax.tea(tail_fraction=0.5, budget=64)
NUM_STEPS, NUM_PROMPTS, NUM_ROLLOUTS = 3, 2, 8


def tiny_qwen3(seed):
  config = qwen3.ModelConfig(
    num_layers=2,
    vocab_size=len(ALPHABET) + 2,
    embed_dim=32,
    hidden_dim=48,
    num_heads=4,
    head_dim=8,
    num_kv_heads=2,
    rope_theta=10_000,
    norm_eps=1e-6,
    use_tied_embedding=True,
  )
  return qwen3.Qwen3(config, rngs=nnx.Rngs(seed))


def cluster(actor):
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
  roles = (rl_cluster.Role.ACTOR, rl_cluster.Role.ROLLOUT, rl_cluster.Role.REFERENCE)
  return rl_cluster.RLCluster(
    actor=actor,
    reference=None,
    tokenizer=letter_tokenizer(),
    cluster_config=rl_cluster.ClusterConfig(
      role_to_mesh=dict.fromkeys(roles, mesh),
      training_config=rl_cluster.RLTrainingConfig(
        actor_optimizer=optax.adam(1e-3),
        eval_every_n_steps=100,
        max_steps=NUM_STEPS,
        mini_batch_size=NUM_PROMPTS,
        train_micro_batch_size=NUM_PROMPTS,
      ),
      rollout_config=base_rollout.RolloutConfig(
        max_tokens_to_generate=12,
        max_prompt_length=8,
        kv_cache_size=64,
        temperature=1.0,
        top_p=1.0,
      ),
    ),
  )


class Recorded(GRPOLearner):
  """Keeps the batches that the actor is trained on."""

  def __init__(self, *args, **kwargs):
    super().__init__(*args, **kwargs)
    self.trained, self.rewards = [], []

  def _generate_and_compute_advantage(self, training_input, mode=rl_cluster.Mode.TRAIN):
    example = super()._generate_and_compute_advantage(training_input, mode)
    self.trained.append(np.asarray(example.advantages))
    return example

  def _compute_rewards(self, *args, **kwargs):
    rewards = super()._compute_rewards(*args, **kwargs)
    self.rewards.append(np.array(rewards))
    return rewards


@pytest.fixture(scope="module")
def trained():
  """`(learner, parameters before, parameters after)` of three steps with TEA."""
  config = GRPOConfig(
    advantage_estimator="tea",
    num_generations=NUM_ROLLOUTS,
    loss_agg_mode="seq-mean-token-sum",
    beta=0.0,
  )
  tunix.register("tea", TEA, config=config)
  learner = Recorded(
    rl_cluster=cluster(tiny_qwen3(0)),
    algo_config=config,
    reward_fns=lambda prompts, completions, **_: vowels(completions),
  )
  before = parameters(learner)
  learner.train([{"prompts": np.array(["say a", "go"])}] * NUM_STEPS)
  return learner, before, parameters(learner)


def parameters(learner):
  return [np.array(p) for p in jax.tree.leaves(nnx.state(learner.rl_cluster.actor_trainer.model))]


def test_three_steps_train_exactly_the_advantages_of_the_rule(trained):
  learner, before, after = trained
  assert len(learner.trained) == NUM_STEPS
  for advantages, rewards in zip(learner.trained, learner.rewards, strict=True):
    groups = rewards.astype(np.float32).reshape(NUM_PROMPTS, NUM_ROLLOUTS)
    np.testing.assert_array_equal(advantages, np.asarray(TEA(groups)).reshape(-1))
  assert any(np.any(advantages != 0) for advantages in learner.trained)
  assert any(np.any(a != b) for a, b in zip(before, after, strict=True))


def test_our_normalised_grpo_is_tunixs(trained):
  tunix.register("grpo_z", tea_jax.grpo(normalize=True, ddof=1, epsilon=1e-6))
  ours, theirs = map(function_registry.get_advantage_estimator, ("grpo_z", "grpo"))
  for rewards in trained[0].rewards:
    np.testing.assert_allclose(
      ours(rewards=rewards, num_generations=NUM_ROLLOUTS),
      theirs(rewards=rewards, num_generations=NUM_ROLLOUTS),
      rtol=1e-5,
      atol=1e-6,
    )
