"""Rows that go on after most have ended: where they move, and that they draw the same tokens."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tea_jax.rollout.engine import RolloutEngine
from tea_jax.rollout.sampling import SamplingConfig
from tea_jax.rollout.survivors import fits, moved, plan_move
from tests.models import tiny

SMALL = dataclasses.replace(tiny.LLAMA, num_layers=1)
# A third of the vocabulary ends a row: after a few tokens half of them are gone.
SAMPLING = SamplingConfig(max_completion_length=16, stop_tokens=tuple(range(0, 97, 6)))


@pytest.mark.parametrize(
  "live, fit", [([4, 4], True), ([8, 0], True), ([5, 3], False), ([0, 0], True)]
)
def test_survivors_move_where_they_fit_into_half_the_places(live, fit):
  done = np.ones((2, 8), bool)
  for row, count in zip(done, live, strict=True):
    row[8 - count :] = False
  assert bool(fits(jnp.asarray(done.reshape(-1)), 2, 4)) == fit
  move = plan_move(done.reshape(-1), 2, 4)
  assert (move is not None) == fit
  if move is not None:
    np.testing.assert_array_equal(np.sort(move.rows[move.kept]), np.flatnonzero(~done.reshape(-1)))
    blocks = np.repeat(move.blocks, 4)
    np.testing.assert_array_equal(blocks[move.kept], move.rows[move.kept] // 8)


class Rows(NamedTuple):
  """What `moved` needs of a `DecodeState`."""

  step: jax.Array
  done: jax.Array
  tokens: jax.Array


def test_rows_take_their_own_along_and_places_left_over_are_done():
  done = np.array([0, 1, 1, 0, 1, 1, 1, 0], bool)  # two blocks of four; 0, 3 and 7 go on
  move = plan_move(done, 2, 2)
  assert move is not None
  state = Rows(jnp.int32(5), jnp.asarray(done), jnp.arange(8))
  uniforms = jnp.arange(3 * 8 * 2).reshape(3, 8, 2)
  after, lengths, cache, drawn = moved(
    state, jnp.array([10, 20]), jnp.array([[1], [2]]), uniforms, move
  )
  assert after.tokens[:3].tolist() == [0, 3, 7]
  assert after.done.tolist() == [False, False, False, True]
  assert (int(after.step), lengths.tolist(), cache.tolist()) == (5, [10, 20], [[1], [2]])
  np.testing.assert_array_equal(drawn[:, :3], uniforms[:, [0, 3, 7]])


@pytest.mark.parametrize(
  "prompts, rollouts", [pytest.param(4, 8, marks=pytest.mark.slow), (3, 5), (1, 1)]
)
def test_rows_that_move_draw_the_same_tokens(prompts, rollouts):
  policy = tiny.tiny_policy(SMALL)
  texts = [[1 + i, 2, 3][: 1 + i % 3] for i in range(prompts)]
  options = {"key": jax.random.key(3), "num_rollouts": rollouts}
  expected = RolloutEngine(policy, SAMPLING).generate(policy.params, texts, **options)
  engine = RolloutEngine(policy, dataclasses.replace(SAMPLING, compactions=3))
  found = engine.generate(policy.params, texts, **options)
  for name in ("completion_tokens", "completion_lengths", "finished"):
    np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
  for name in ("logprobs", "sampling_logprobs"):  # other shapes change last bits of logits
    np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=1e-5)


def test_shapes_are_compiled_once_and_are_few():
  policy = tiny.tiny_policy(dataclasses.replace(SMALL, vocab_size=98))
  engine = RolloutEngine(policy, dataclasses.replace(SAMPLING, compactions=3))
  _, advance = engine._compiled(32)
  before, sizes = advance._cache_size(), set()
  compiled = engine._compiled

  def watch(rows):
    sizes.add(rows)
    return compiled(rows)

  engine._compiled = watch
  for seed in range(6):
    engine.generate(policy.params, [[1, 2]] * 4, key=jax.random.key(seed), num_rollouts=8)
  assert {32, 16} <= sizes <= {32, 16, 8, 4}
  assert advance._cache_size() - before == len(sizes)
