import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tea_jax.advantages import grpo, prefix_tea, tea
from tea_jax.data import encode_prompts
from tea_jax.evaluation.alignment import gradient_cosine, oracle_advantages
from tea_jax.evaluation.policy_alignment import (
  ORACLE,
  empty_sums,
  group_weights,
  make_gradient_sums,
  policy_alignment,
)
from tea_jax.evaluation.pools import sample_pools
from tea_jax.models.logprobs import token_logprobs
from tea_jax.rollout.engine import RolloutEngine
from tea_jax.rollout.sampling import SamplingConfig
from tests.training import tiny

RULES = {"tea": tea(budget=32), "grpo": grpo()}
STUDY = {"num_rollouts": (8, 16), "num_seeds": 2, "budget": 32}


@pytest.fixture(scope="module")
def policy():
  return tiny.policy()


@pytest.fixture(scope="module")
def pools(policy, tmp_path_factory):
  folder = tmp_path_factory.mktemp("pools")
  engine = RolloutEngine(policy, SamplingConfig(max_completion_length=6))
  prompts = encode_prompts(
    tiny.splits()["validation"], policy.tokenizer, template="raw", max_prompt_length=8
  )
  arguments = (engine, policy.params, prompts, tiny.reward)
  first = sample_pools(*arguments, folder=folder, pool_size=20)
  again = sample_pools(*arguments, folder=folder, pool_size=20)
  for one, other in zip(first, again):
    np.testing.assert_array_equal(one, other)
  return first


def direct_gradient(policy, pools, weights):
  """Gradient of the weighted log-probabilities of all rollouts, by plain differentiation."""

  def loss(block):
    layers = jax.tree.map(lambda leaf, b: leaf.at[-1].set(b), policy.params["layers"], block)
    params = policy.params | {"layers": layers}
    total = 0.0
    for prompt in range(len(weights)):
      logprobs = token_logprobs(
        policy,
        params,
        pools.tokens[prompt],
        np.full(pools.tokens.shape[1], pools.prompt_lengths[prompt]),
        pools.lengths[prompt],
      ).logprobs
      total += jnp.sum(logprobs.sum(-1) * weights[prompt])
    return total

  return jax.grad(loss)(jax.tree.map(lambda leaf: leaf[-1], policy.params["layers"]))


def test_sums_are_the_gradients_of_weighted_log_probabilities(policy, pools):
  weights = np.random.default_rng(0).normal(size=(3, *pools.rewards.shape)).astype(np.float32)
  add = make_gradient_sums(policy)
  sums = empty_sums(policy.params, 3)
  rows = pools.rewards.shape[1]
  for prompt, tokens in enumerate(pools.tokens):
    lengths = (np.full(rows, pools.prompt_lengths[prompt]), pools.lengths[prompt])
    sums = add(sums, policy.params, tokens, *lengths, weights[:, prompt])
  for k in range(3):
    expected = direct_gradient(policy, pools, weights[k])
    for one, other in zip(jax.tree.leaves(sums), jax.tree.leaves(expected), strict=True):
      np.testing.assert_allclose(one[k], other, rtol=2e-4, atol=2e-5 * float(jnp.abs(other).max()))


def test_cosines_are_those_of_directly_computed_gradients(policy, pools):
  study = policy_alignment(policy, policy.params, pools, RULES, rows=8, **STUDY)
  weights = group_weights(RULES, pools.rewards, **STUDY)
  for size in STUDY["num_rollouts"]:
    for seed in range(2):
      oracle = direct_gradient(policy, pools, weights[seed, size, ORACLE])
      gradient = direct_gradient(policy, pools, weights[seed, size, "tea"])
      expected = gradient_cosine(gradient, oracle)
      np.testing.assert_allclose(study[size]["tea"].cosines[seed], expected, atol=2e-4)


def test_little_memory_takes_more_passes_and_gives_the_same(policy, pools):
  whole = policy_alignment(policy, policy.params, pools, RULES, **STUDY)
  parts = policy_alignment(policy, policy.params, pools, RULES, memory=1, rows=7, **STUDY)
  for size in STUDY["num_rollouts"]:
    for name in RULES:
      np.testing.assert_allclose(
        whole[size][name].cosines, parts[size][name].cosines, rtol=1e-4, atol=1e-5
      )


def test_oracle_weights_are_the_pools_own_inside_the_group_and_zero_outside(pools):
  weights = group_weights(RULES, pools.rewards, **STUDY)[1, 8, ORACLE]
  oracle = np.asarray(oracle_advantages(jnp.asarray(pools.rewards, jnp.float32), budget=32))
  assert ((weights != 0).sum(-1) <= 8).all()
  inside = weights != 0
  ratio = weights[inside] / oracle[inside]
  np.testing.assert_allclose(ratio, ratio[0], rtol=1e-5)


def test_a_rule_is_left_out_where_it_refuses_the_group_size(policy, pools):
  # Four growing prefixes with two tail rollouts each do not fit into 8 rollouts.
  rules = RULES | {"prefix": prefix_tea(budget=32)}
  sizes = {**STUDY, "num_rollouts": (8, 18)}
  study = policy_alignment(policy, policy.params, pools, rules, **sizes)
  assert set(study[8]) == {"tea", "grpo"}
  assert set(study[18]) == {"tea", "grpo", "prefix"}
  without = policy_alignment(policy, policy.params, pools, RULES, **sizes)
  np.testing.assert_allclose(study[8]["tea"].cosines, without[8]["tea"].cosines, atol=1e-5)
