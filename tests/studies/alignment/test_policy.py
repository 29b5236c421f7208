import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tea_jax.advantages import grpo, prefix_tea, tea
from tea_jax.data import Prompt, encode_prompts
from tea_jax.models.logprobs import token_logprobs
from tea_jax.rollout.engine import RolloutEngine
from tea_jax.rollout.sampling import SamplingConfig
from tea_jax.studies.alignment.estimators import gradient_cosine, oracle_advantages
from tea_jax.studies.alignment.policy import (
  ORACLE,
  empty_sums,
  group_weights,
  make_gradient_sums,
  plan_passes,
  policy_alignment,
)
from tea_jax.studies.alignment.pools import sample_pools
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_cosines_are_those_of_directly_computed_gradients(policy, pools):
  study = policy_alignment(policy, policy.params, pools, RULES, rows=8, **STUDY)
  weights = group_weights(RULES, pools.rewards, **STUDY)
  for size in STUDY["num_rollouts"]:
    for seed in range(2):
      oracle = direct_gradient(policy, pools, weights[seed, size, ORACLE])
      gradient = direct_gradient(policy, pools, weights[seed, size, "tea"])
      expected = gradient_cosine(gradient, oracle)
      np.testing.assert_allclose(study[size]["tea"].cosines[seed], expected, atol=2e-4)


@pytest.mark.slow
def test_little_memory_takes_more_passes_and_gives_the_same(policy, pools):
  whole = policy_alignment(policy, policy.params, pools, RULES, **STUDY)
  parts = policy_alignment(policy, policy.params, pools, RULES, memory=1, rows=7, **STUDY)
  for size in STUDY["num_rollouts"]:
    for name in RULES:
      np.testing.assert_allclose(
        whole[size][name].cosines, parts[size][name].cosines, rtol=1e-4, atol=1e-5
      )


@pytest.mark.parametrize(
  "capacity, lengths", [(100, [9]), (7, [6, 3]), (4, [3, 3, 3]), (2, [2] * 6)]
)
def test_every_sum_has_its_oracle_in_the_same_pass(capacity, lengths):
  labels = [(0, 8, n) for n in (ORACLE, "a", "b")] + [(1, 8, n) for n in (ORACLE, "a", "b")]
  labels += [(1, 16, n) for n in (ORACLE, "a", "b")]
  passes = plan_passes(labels, capacity)
  assert max(map(len, passes)) <= capacity
  assert [len(p) for p in passes] == lengths
  done = [label for part in passes for label in part if label[2] != ORACLE]
  assert done == [label for label in labels if label[2] != ORACLE]
  for part in passes:
    assert all((*label[:2], ORACLE) in part for label in part)


def test_pools_of_another_policy_or_reward_are_refused(policy, tmp_path):
  engine = RolloutEngine(policy, SamplingConfig(max_completion_length=4))
  prompts = encode_prompts(
    tiny.splits()["validation"], policy.tokenizer, template="raw", max_prompt_length=8
  )
  options = {"folder": tmp_path, "pool_size": 4}
  arguments = (engine, policy.params, prompts)
  sample_pools(*arguments, tiny.reward, spec={"weights": "a"}, **options)
  with pytest.raises(ValueError, match="weights: 'a' -> 'b'"):
    sample_pools(*arguments, tiny.reward, spec={"weights": "b"}, **options)

  def other(prompts, completions):
    return [0.0] * len(prompts)

  with pytest.raises(ValueError, match="reward: 'reward' -> 'other'"):
    sample_pools(*arguments, other, spec={"weights": "a"}, **options)


def test_pools_are_read_again_beside_longer_prompts(policy, tmp_path):
  engine = RolloutEngine(policy, SamplingConfig(max_completion_length=4))

  def draw(*texts):
    made = [Prompt(id=i, text=text) for i, text in enumerate(texts)]
    prompts = encode_prompts(made, policy.tokenizer, template="raw", max_prompt_length=8)
    return sample_pools(engine, policy.params, prompts, tiny.reward, folder=tmp_path, pool_size=4)

  short = draw("w1 w2")
  both = draw("w1 w2", "w3 w4 w5 w6 w7")
  width = short.tokens.shape[-1]
  np.testing.assert_array_equal(both.tokens[0, :, :width], short.tokens[0])
  assert not both.tokens[0, :, width:].any()


def test_an_unscored_completion_of_a_pool_is_named(policy, tmp_path):
  def partly(prompts, completions):
    return [None, *[1.0] * (len(prompts) - 1)]

  prompts = encode_prompts(
    tiny.splits()["validation"], policy.tokenizer, template="raw", max_prompt_length=8
  )
  engine = RolloutEngine(policy, SamplingConfig(max_completion_length=4))
  with pytest.raises(ValueError, match="1 of 4 completions of 'w"):
    sample_pools(engine, policy.params, prompts, partly, folder=tmp_path, pool_size=4)


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
