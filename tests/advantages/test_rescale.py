"""Rescaled rules: the size of the centred rewards, the order of the rule, tracked over steps."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tea_jax
from tea_jax.advantages import AdvantageSpec, rescaled

REWARDS = np.random.default_rng(0).normal(size=(3, 16)).astype(np.float32) * [[1], [5], [0.2]]
REWARDS = REWARDS.astype(np.float32)
CENTRED = REWARDS - REWARDS.mean(-1, keepdims=True)


def size(values, axis=None):
  return np.sqrt(np.mean(np.square(np.asarray(values, np.float64)), axis))


@pytest.mark.parametrize("name", ["tea", "tail_influence", "max_at_k", "cat_best_of_n"])
def test_advantages_have_the_size_of_the_centred_rewards(name):
  rule = tea_jax.make_advantage(name, **({"k": 4} if name == "max_at_k" else {}))
  group, batch = (rescaled(rule, scale)(REWARDS) for scale in ("group", "batch"))
  np.testing.assert_allclose(size(group, -1), size(CENTRED, -1), rtol=1e-5)
  assert size(batch) == pytest.approx(size(CENTRED), rel=1e-5)
  own = np.asarray(rule(REWARDS))
  np.testing.assert_allclose(batch * size(own) / size(CENTRED), own, rtol=1e-5, atol=1e-6)


def test_grpo_stays_what_it_is():
  rule = tea_jax.grpo()
  for scale in ("group", "batch"):
    np.testing.assert_allclose(rescaled(rule, scale)(REWARDS), rule(REWARDS), rtol=1e-5, atol=1e-6)
  assert rescaled(rule, "none") is rule


def test_flat_groups_get_zeros_and_masked_rollouts_count_for_nothing():
  flat = np.ones((2, 8), np.float32)
  for scale in ("group", "batch"):
    assert not np.any(rescaled(tea_jax.tea(), scale)(flat))
  where = np.ones((3, 16), bool)
  where[:, 12:] = False
  other = np.where(where, REWARDS, np.float32(np.nan))
  rule = rescaled(tea_jax.tea(), "batch")
  expected = rule(REWARDS[:, :12])
  np.testing.assert_allclose(rule(other, where=where)[:, :12], expected, rtol=1e-5)


def test_batch_factor_is_tracked_over_steps():
  rule = rescaled(tea_jax.tea(), "batch")
  first, state = rule.update(rule.init(), REWARDS, step=0)
  np.testing.assert_allclose(first, rule(REWARDS), rtol=1e-5)
  # A batch of other shape moves the factor by a tenth of its weight, not at once.
  skewed = 0.3 * np.exp(REWARDS)
  second, state = jax.jit(lambda s, r: rule.update(s, r, step=1))(state, skewed)
  own = [np.asarray(tea_jax.tea()(r), np.float64) for r in (REWARDS, skewed)]
  centred = [r - r.mean(-1, keepdims=True) for r in (REWARDS, skewed)]
  squares = [0.9 * size(a) ** 2 + size(b) ** 2 for a, b in (centred, own)]
  np.testing.assert_allclose(second, own[1] * np.sqrt(squares[0] / squares[1]), rtol=1e-4)
  assert all(jnp.ndim(leaf) == 0 for leaf in jax.tree.leaves(state))


def test_the_state_of_the_rule_itself_goes_on():
  tracked = tea_jax.cat_best_of_n(quantile="tracked", buffer_capacity=64)
  plain, wrapped = tracked.init(), rescaled(tracked, "batch").init()
  for step in range(3):
    _, plain = tracked.update(plain, REWARDS, step=step)
    _, wrapped = rescaled(tracked, "batch").update(wrapped, REWARDS, step=step)
  for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(wrapped.inner), strict=True):
    np.testing.assert_array_equal(a, b)


def test_every_rule_takes_a_scale_by_name():
  spec = AdvantageSpec.parse("tea:budget=64,scale=batch")
  assert str(spec) == "tea:budget=64,scale=batch"
  assert AdvantageSpec.from_dict(spec.to_dict()) == spec
  assert repr(spec.build()).startswith("rescaled(tea(")
  assert spec.build().parameters["budget"] == 64
  assert repr(tea_jax.make_advantage("tea", scale="none")) == repr(tea_jax.tea())
  with pytest.raises(ValueError, match="scale='each' must be one of none, group, batch"):
    AdvantageSpec("tea", {"scale": "each"})
