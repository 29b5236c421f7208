"""Oracle alignment: cosines against explicit gradients, groups without replacement, the report."""

import csv
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tea_jax.advantages import best_of_n_oracle, grpo, make_advantage
from tea_jax.studies.alignment import estimators, report
from tea_jax.studies.alignment.synthetic_pools import POOL_SHAPES, synthetic_pools


def arrays(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_orthonormal_scores_give_the_cosine_of_the_explicit_gradients():
  advantages, oracle = arrays(3, 4), arrays(3, 4, seed=1)
  scores = jnp.asarray(np.linalg.qr(np.random.default_rng(2).normal(size=(20, 12)))[0].T)
  gradient = jnp.einsum("n,nd->d", advantages.ravel(), scores)
  oracle_gradient = jnp.einsum("n,nd->d", oracle.ravel(), scores)
  expected = estimators.gradient_cosine(gradient, oracle_gradient)
  np.testing.assert_allclose(estimators.alignment_cosine(advantages, oracle), expected, atol=1e-6)


def test_a_cosine_ignores_lengths_and_is_undefined_for_zero():
  advantages, oracle = arrays(2, 3), arrays(2, 3, seed=1)
  expected = float(estimators.alignment_cosine(advantages, oracle))
  for factor in (1e-30, 1e30):
    got = estimators.alignment_cosine(factor * advantages, oracle / factor)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
  assert np.isnan(estimators.alignment_cosine(jnp.zeros((2, 3)), oracle))
  np.testing.assert_allclose(estimators.alignment_cosine(oracle, 3 * oracle), 1, rtol=1e-6)


def test_prompts_are_summed_before_the_cosine():
  # Each prompt alone has cosine 1 or -1; only the sum knows which prompt is larger.
  oracle = jnp.asarray([[1.0, -1.0], [3.0, -3.0]])
  advantages = jnp.asarray([[-1.0, 1.0], [3.0, -3.0]])
  got = estimators.alignment_cosine(advantages, oracle)
  np.testing.assert_allclose(got, 16 / 20, rtol=1e-6)


def test_groups_are_drawn_without_replacement_and_nested():
  key = jax.random.key(0)
  small = estimators.draw_groups(key, (5,), 40, 8)
  large = estimators.draw_groups(key, (5,), 40, 32)
  np.testing.assert_array_equal(large[:, :8], small)
  assert all(len(set(row)) == 32 for row in np.asarray(large).tolist())
  with pytest.raises(ValueError, match="num_rollouts=41 exceeds the pool of 40"):
    estimators.draw_groups(key, (5,), 40, 41)


def test_every_member_of_a_pool_is_drawn_equally_often():
  groups = np.asarray(estimators.draw_groups(jax.random.key(1), (20_000,), 6, 3))
  counts = np.bincount(groups.ravel(), minlength=6) / 20_000
  np.testing.assert_allclose(counts, 0.5, atol=0.02)


def test_the_oracle_is_the_gradient_of_the_expected_maximum_of_the_pool():
  pool = jnp.asarray([0.3, -1.0, 2.0, 0.3])
  draws = np.array(list(itertools.product(range(4), repeat=3)))
  best = np.asarray(pool)[draws].max(-1)

  def value(logits):
    return jnp.sum(jnp.prod(jax.nn.softmax(logits)[draws], -1) * best)

  gradient = jax.grad(value)(jnp.zeros(4))
  np.testing.assert_allclose(estimators.oracle_advantages(pool, budget=3) / 4, gradient, atol=1e-6)


def test_a_group_that_is_the_whole_pool_aligns_perfectly():
  pools = jnp.stack([synthetic_pools(jax.random.key(i), "gumbel", pool_size=64) for i in range(3)])
  rules = {"oracle": best_of_n_oracle(budget=16), "grpo": grpo()}
  result = estimators.make_alignment(rules, num_rollouts=64, budget=16)(jax.random.key(0), pools)
  np.testing.assert_allclose(result["oracle"].cosines, 1, rtol=1e-5)
  assert result["grpo"].mean < 0.9
  assert result["oracle"].cosines.shape == (3,)


def test_the_compiled_alignment_is_the_loop_over_its_parts():
  pools = jnp.stack([synthetic_pools(jax.random.key(i), "beta", pool_size=32) for i in range(3)])
  rule, key = make_advantage("bon_rl"), jax.random.key(3)
  result = estimators.make_alignment({"bon_rl": rule}, num_rollouts=8, budget=16)(key, pools)
  for seed, pool in enumerate(pools):
    group_key, rule_key = jax.random.split(jax.random.fold_in(key, seed))
    indices = estimators.draw_groups(group_key, pool.shape[:-1], 32, 8)
    oracle = jnp.take_along_axis(estimators.oracle_advantages(pool, budget=16), indices, -1)
    advantages = rule(jnp.take_along_axis(pool, indices, -1), key=rule_key)
    cosine = estimators.alignment_cosine(advantages, oracle)
    np.testing.assert_allclose(result["bon_rl"].cosines[seed], cosine, atol=1e-5)


def test_rules_that_refuse_the_size_are_left_out_and_those_that_need_more_are_named():
  pools = synthetic_pools(jax.random.key(0), "gaussian", pool_size=32)[None]
  rules = {"prefix_tea": make_advantage("prefix_tea"), "grpo": grpo()}
  result = estimators.make_alignment(rules, num_rollouts=4, budget=16)(jax.random.key(0), pools)
  assert list(result) == ["grpo"]
  with pytest.raises(ValueError, match="rule 'majority' needs answers"):
    estimators.make_alignment({"majority": make_advantage("cat_majority")}, num_rollouts=4)


def test_means_leave_out_undefined_seeds():
  summary = estimators.summarize_cosines([0.2, np.nan, 0.4])
  assert summary.mean == pytest.approx(0.3)
  assert summary.standard_error == pytest.approx(0.1)
  assert np.isnan(estimators.summarize_cosines([np.nan]).mean)
  assert np.isnan(estimators.summarize_cosines([0.5]).standard_error)


@pytest.mark.parametrize("shape", POOL_SHAPES)
def test_pools_are_finite_and_differ_by_prompt_and_key(shape):
  pools = np.asarray(synthetic_pools(jax.random.key(0), shape, num_prompts=8, pool_size=256))
  assert pools.shape == (8, 256)
  assert np.all(np.isfinite(pools))
  assert len(np.unique(pools.mean(-1).round(5))) == 8
  other = synthetic_pools(jax.random.key(1), shape, num_prompts=8, pool_size=256)
  assert not np.allclose(pools, other)


def test_spreads_move_and_stretch_prompts():
  key = jax.random.key(0)
  plain = synthetic_pools(key, "beta", location_spread=0.0, scale_spread=0.0, num_prompts=64)
  moved = synthetic_pools(key, "beta", location_spread=3.0, scale_spread=0.7, num_prompts=64)
  assert np.std(plain.mean(-1)) < 0.05
  assert np.std(np.log(moved.std(-1))) == pytest.approx(0.7, abs=0.2)
  assert np.std(moved.mean(-1)) == pytest.approx(3.0, abs=0.9)
  with pytest.raises(ValueError, match="unknown pool 'cauchy'; known: gaussian"):
    synthetic_pools(key, "cauchy")


def study():
  cell = estimators.summarize_cosines
  return {
    "gaussian": {
      8: {"tea": cell([0.4, 0.5]), "grpo": cell([0.1, 0.3])},
      16: {"tea": cell([0.6, 0.6]), "mine": cell([0.7, 0.9]), "grpo": cell([np.nan, np.nan])},
    }
  }


def test_rows_hold_means_with_the_best_in_bold():
  assert report.alignment_rows(study(), "gaussian") == [
    ["tea", "**0.450 (0.050)**", "0.600 (0.000)"],
    ["grpo", "0.200 (0.100)", "-"],
    ["mine", "-", "**0.800 (0.100)**"],
  ]
  assert report.paired_rows(study(), "mine") == [["gaussian", "-", "+0.200 (0.100) tea"]]
  published = report.published_rows([16, 7])
  assert ["tea", "0.668", "-"] in published


def test_the_report_holds_everything(tmp_path):
  folder = tmp_path / "new"
  written = report.write_alignment(study(), folder, settings={"budget": 128}, compare="mine")
  text = written.read_text()
  assert "| mine | - | **0.800 (0.100)** |" in text
  assert "| budget | 128 |" in text
  assert "mine minus the best other rule" in text
  rows = list(csv.DictReader((folder / "alignment.csv").open()))
  assert len(rows) == 5
  assert rows[0] == {
    "pool": "gaussian",
    "num_rollouts": "8",
    "rule": "tea",
    "mean": "0.450000",
    "standard_error": "0.050000",
    "num_seeds": "2",
  }
  stored = json.loads((folder / "alignment.json").read_text())
  assert stored["alignment"][4]["cosines"] == [None, None]
  assert (folder / "alignment.png").read_bytes()[:4] == b"\x89PNG"
  assert sorted(p.name for p in folder.iterdir()) == [
    "alignment.csv",
    "alignment.json",
    "alignment.png",
    "report.md",
  ]
