"""What every advantage rule promises, whatever it computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tea_jax.advantages import AdvantageRule
from tests.advantages.cases import CASES, RANDOM, SHAPE, inputs, make, normal_rewards, rows

# One case a rule; the others are variants of its arithmetic, for which fewer tests are enough.
BASE = tuple(case for case, (name, _) in CASES.items() if case == name)


def extreme_groups(num_rollouts: int) -> np.ndarray:
  """Groups on which sums, squares and quotients go wrong, `[groups, num_rollouts]` float32."""
  generator = np.random.default_rng(1)
  normal = generator.normal(size=num_rollouts)
  ties = generator.integers(0, 2, num_rollouts).astype(float)
  one_up = np.zeros(num_rollouts)
  one_up[0] = 1.0
  signs = np.where(np.arange(num_rollouts) % 2 == 0, 1.0, -1.0)
  largest = float(np.finfo(np.float32).max) * 0.99
  return np.stack(
    [
      normal,
      ties,
      one_up,
      -one_up,
      np.zeros(num_rollouts),
      np.full(num_rollouts, 0.35),
      np.full(num_rollouts, -largest),
      largest * signs,
      largest * one_up,
      1e30 * normal,
      1e6 + normal,
      1e-30 * normal,
      1e-38 * signs,
      1e-45 * ties,
      1e-20 * normal + largest * 1e-30 * one_up,
    ]
  ).astype(np.float32)


@pytest.mark.parametrize(
  "num_rollouts, dtype", [(2, jnp.bfloat16), (19, jnp.float32), (512, jnp.float32)]
)
@pytest.mark.parametrize("case", CASES)
def test_advantages_of_extreme_groups_are_finite(case, num_rollouts, dtype):
  if num_rollouts != SHAPE[1] and case not in BASE:
    pytest.skip("a variant of a rule; compilation is what takes the time here")
  rule = make(case)
  rewards = jnp.asarray(extreme_groups(num_rollouts)).astype(dtype)
  # bfloat16 rounds the largest float32 up to infinity.
  rewards = jnp.clip(rewards, -jnp.finfo(dtype).max, jnp.finfo(dtype).max)
  named = inputs(rewards.shape)
  if num_rollouts == 2 and case in ("prefix_tea", "subset_tea"):
    with pytest.raises(ValueError, match=r"num_rollouts=2 .* use num_rollouts="):
      rule(rewards, **named)
    return
  advantages = rule(rewards, **named)
  assert advantages.shape == rewards.shape
  assert advantages.dtype == dtype
  assert np.all(np.isfinite(np.asarray(advantages, np.float32)))


@pytest.mark.parametrize("case", CASES)
def test_rules_satisfy_the_protocol(case):
  assert isinstance(make(case), AdvantageRule)


@pytest.mark.parametrize("case", CASES)
def test_constant_group_gives_exactly_zero_advantages(case):
  if case in ("bon_rl_baseline", "cat_best_of_n_laplace", "max_at_k_plain"):
    pytest.skip("not centred: a given baseline, a penalty, or none by definition")
  levels = np.linspace(-7.0, 1e4, SHAPE[0], dtype=np.float32)
  levels[:2] = 0.35, -0.1
  rewards = np.repeat(levels[:, None], SHAPE[1], axis=1)
  np.testing.assert_array_equal(make(case)(rewards, **inputs(SHAPE)), 0)


@pytest.mark.parametrize("case", ["grpo", "grpo_z", "grpo_z_sample", "rloo", "max_at_k"])
@pytest.mark.parametrize("num_rollouts", [3, 7, 11, 49, 100])
def test_equal_float32_rewards_give_exactly_zero(case, num_rollouts):
  # Their float32 mean is often another number, and the standard deviation about it is not 0.
  levels = np.linspace(0.01, 1, 997, dtype=np.float32)[:, None]
  rewards = np.broadcast_to(levels, (len(levels), num_rollouts))
  np.testing.assert_array_equal(make(case)(rewards), 0)


@pytest.mark.parametrize("case", ["grpo_z", "grpo_z_sample", "max_at_k", "cat_best_of_n"])
def test_rounding_noise_is_not_standardized_into_a_signal(case):
  rewards = np.full(SHAPE, 0.35, np.float32)
  rewards[:, 3] = np.nextafter(np.float32(0.35), np.float32(1))
  np.testing.assert_array_equal(make(case)(rewards, **inputs(SHAPE)), 0)


@pytest.mark.parametrize("case", BASE)
def test_jit_changes_nothing(case):
  rewards, rule, named = normal_rewards(SHAPE), make(case), inputs(SHAPE)
  compiled = rule(rewards, **named)
  with jax.disable_jit():
    plain = rule(rewards, **named)
  np.testing.assert_allclose(compiled, plain, rtol=2e-5, atol=2e-5 * np.abs(plain).max())


def test_rules_can_be_jitted_from_outside():
  rewards, rule = normal_rewards(SHAPE), make("prefix_tea")
  outside = jax.jit(lambda rewards, key: rule(rewards, key=key))(rewards, jax.random.key(0))
  np.testing.assert_allclose(outside, rule(rewards, key=jax.random.key(0)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", BASE)
def test_vmap_is_a_loop(case):
  rewards, rule, named = normal_rewards(SHAPE), make(case), inputs(SHAPE)
  keys = jax.random.split(jax.random.key(3), SHAPE[0])
  shared = {k: named[k] for k in ("logprobs", "answers", "quantiles")}
  mapped = jax.vmap(lambda r, k, n: rule(r, key=k, thresholds=3.0, **n))(rewards, keys, shared)
  if case in RANDOM:
    expected = np.stack(
      [rule(rewards[i], key=keys[i], thresholds=3.0, **rows(shared, i)) for i in range(SHAPE[0])]
    )
  else:
    expected = np.asarray(rule(rewards, **named))
  np.testing.assert_allclose(mapped, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("case", [case for case in BASE if case not in RANDOM])
def test_groups_do_not_influence_each_other(case):
  rewards, rule, named = normal_rewards(SHAPE), make(case), inputs(SHAPE)
  before = np.asarray(rule(rewards, **named))
  rewards[1:] = normal_rewards(SHAPE, seed=9)[1:] * 7
  np.testing.assert_allclose(rule(rewards, **named)[0], before[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_no_gradient_flows(case):
  rewards, rule, named = normal_rewards((19,)), make(case), inputs((19,))
  direction = jnp.arange(19.0)

  def total(rewards, logprobs, quantiles):
    given_inputs = {**named, "logprobs": logprobs, "quantiles": quantiles}
    return jnp.sum(direction * rule(rewards, **given_inputs))

  gradient_of = jax.jit(jax.grad(total, argnums=(0, 1, 2)))
  gradients = gradient_of(rewards, named["logprobs"], named["quantiles"])
  for gradient in gradients:
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("case", [case for case in CASES if case not in RANDOM])
def test_permuting_the_rollouts_permutes_the_advantages(case):
  rewards, rule, named = normal_rewards(SHAPE), make(case), inputs(SHAPE)
  order = np.random.default_rng(5).permutation(SHAPE[1])
  expected = np.asarray(rule(rewards, **named))[:, order]
  permuted = rule(rewards[:, order], **rows(named, (slice(None), order)))
  np.testing.assert_allclose(permuted, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("case", RANDOM)
def test_random_rules_depend_on_their_key_only(case):
  rewards, rule = normal_rewards(SHAPE), make(case)
  first = rule(rewards, key=jax.random.key(1))
  np.testing.assert_array_equal(first, rule(rewards, key=jax.random.key(1)))
  assert np.any(np.asarray(first) != np.asarray(rule(rewards, key=jax.random.key(2))))
  # Groups draw their orders apart: equal groups of one batch are treated differently.
  equal = rule(np.repeat(rewards[:1], SHAPE[0], axis=0), key=jax.random.key(1))
  assert len(np.unique(np.asarray(equal), axis=0)) > 1


@pytest.mark.parametrize("case", CASES)
def test_masked_group_is_the_group_of_those_that_count(case):
  if case == "max_at_k":
    rule = make(case, k=5)  # the default k follows the size of the array, not the mask
  elif case in ("prefix_tea", "bon_rl", "bon_rl_baseline"):
    rule = make(case, shuffle=False)
  elif case == "subset_tea":
    pytest.skip("the orders of a smaller group are other orders; see test_prefixes")
  else:
    rule = make(case)
  rewards, named = normal_rewards(SHAPE, seed=2), inputs(SHAPE)
  generator = np.random.default_rng(3)
  kept = np.sort([generator.permutation(SHAPE[1])[:17] for _ in range(SHAPE[0])], axis=1)
  where = np.zeros(SHAPE, bool)
  np.put_along_axis(where, kept, True, axis=1)
  spoiled = np.where(where, rewards, np.nan)
  masked_inputs = {**named, "logprobs": jnp.where(where, named["logprobs"], jnp.nan)}
  masked = np.asarray(rule(spoiled, where=where, **masked_inputs))
  np.testing.assert_array_equal(masked[~where], 0)
  index = (np.arange(SHAPE[0])[:, None], kept)
  expected = np.asarray(rule(rewards[index], **rows(named, index)))
  np.testing.assert_allclose(masked[index], expected, rtol=2e-4, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("case", CASES)
def test_groups_with_too_few_left_get_zero_advantages(case):
  rule = make(case)
  smallest = rule.smallest_group(SHAPE[1])
  where = np.zeros(SHAPE, bool)
  where[1, 3] = True
  where[2, : smallest - 1] = True
  where[3] = True
  spoiled = np.where(where, normal_rewards(SHAPE), np.inf)
  advantages = np.asarray(rule(spoiled, where=where, **inputs(SHAPE)))
  assert np.all(np.isfinite(advantages))
  np.testing.assert_array_equal(advantages[:3], 0)
  np.testing.assert_array_equal(advantages[4:], 0)
  assert np.any(advantages[3] != 0)


@pytest.mark.parametrize("case", CASES)
def test_groups_too_small_to_learn_are_refused_before_a_run(case):
  rule = make(case)
  with pytest.raises(ValueError, match=r"num_rollouts"):
    rule.check_num_rollouts(rule.minimum_rollouts - 1)
  rule.check_num_rollouts(rule.minimum_rollouts)


@pytest.mark.parametrize("case", ["tea", "tail_influence", "prefix_tea", "max_at_k_plain"])
def test_the_smallest_group_can_learn(case):
  rule = make(case)
  rewards = np.linspace(1.0, 0.0, rule.minimum_rollouts, dtype=np.float32) ** 3
  assert np.any(np.asarray(rule(rewards, key=jax.random.key(0))) != 0)


@pytest.mark.parametrize("case", ["tea", "tail_influence", "max_at_k_plain", "best_of_n_oracle"])
@settings(max_examples=25, deadline=None)
@given(
  scale=st.sampled_from([1e-6, 0.25, 3.0, 1e6]),
  shift=st.floats(-4.0, 4.0),
  seed=st.integers(0, 1000),
)
def test_advantages_shift_not_and_scale_with_the_rewards(case, scale, shift, seed):
  rewards = np.random.default_rng(seed).normal(size=19).astype(np.float64)
  rule = make(case)
  shift_matters = case == "max_at_k_plain"
  moved = (scale * (rewards + (0.0 if shift_matters else shift))).astype(np.float32)
  base = np.asarray(rule(rewards.astype(np.float32)))
  np.testing.assert_allclose(
    np.asarray(rule(moved)) / scale, base, rtol=1e-3, atol=1e-4 * np.abs(base).max()
  )


def test_missing_inputs_are_named():
  rewards = normal_rewards((2, 19))
  for case, missing in {
    "prefix_tea": "key=jax.random",
    "bon_rl": "key=jax.random",
    "cat_pass_at_n": r"logprobs=\[..., num_rollouts\]",
    "cat_majority": r"answers=\[..., num_rollouts\]",
    "cat_best_of_n_tracked": r"quantiles=\[..., num_rollouts\]",
  }.items():
    with pytest.raises(ValueError, match=missing):
      make(case)(rewards)


def test_wrong_shapes_and_dtypes_are_refused():
  rule = make("grpo")
  with pytest.raises(ValueError, match=r"where has shape \(5,\).*\(4,\)"):
    rule(jnp.zeros(4), where=jnp.ones(5, bool))
  with pytest.raises(TypeError, match="where must be bool"):
    rule(jnp.zeros(4), where=jnp.ones(4))
  with pytest.raises(TypeError, match="floating point"):
    rule(jnp.zeros(4, jnp.int32))
  with pytest.raises(ValueError, match="scalar"):
    rule(jnp.float32(1.0))
  with pytest.raises(TypeError, match="answers must be integer"):
    make("cat_majority")(jnp.zeros(4), answers=jnp.zeros(4))


def test_values_do_not_recompile():
  rule = make("tea")
  rule(normal_rewards(SHAPE, 0))
  compiled = rule._compiled._cache_size()
  for seed in range(1, 4):
    rule(normal_rewards(SHAPE, seed))
  assert rule._compiled._cache_size() == compiled


def test_printing_a_rule_shows_its_resolved_arguments():
  assert repr(make("tea")).startswith("tea(tail_fraction=0.25, budget=128")
