"""Rows of a rollout on several devices: each decodes its own, and the tokens are those of one.

Four CPU devices are forced in a process of its own.
"""

import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from tea_jax.models.sharding import make_mesh, param_shardings
from tea_jax.rollout.engine import RolloutEngine
from tea_jax.rollout.sampling import SamplingConfig
from tests.models import tiny

PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8], [9], [10, 11]]
SAMPLING = SamplingConfig(max_completion_length=8, stop_tokens=(5,))


def rows_of_one_device(state) -> set[int]:
  leaves = jax.tree.leaves(state._replace(step=None))
  return {leaf.addressable_shards[0].data.shape[0] for leaf in leaves}


def check(prompts: int, num_rollouts: int, *, shards: int, silent: bool, **axes: int) -> None:
  policy = tiny.tiny_policy(tiny.LLAMA)
  mesh = make_mesh(**axes)
  params = jax.device_put(policy.params, param_shardings(policy.params, policy.config, mesh))
  options = {"key": jax.random.key(0), "num_rollouts": num_rollouts}
  expected = RolloutEngine(policy, SAMPLING).generate(policy.params, PROMPTS[:prompts], **options)
  engine = RolloutEngine(policy, SAMPLING, mesh=mesh)
  found = engine.generate(params, PROMPTS[:prompts], **options)
  for name in ("completion_tokens", "completion_lengths", "finished"):
    np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
  np.testing.assert_allclose(found.logprobs, expected.logprobs, atol=1e-5)

  rows = prompts * num_rollouts
  start, advance = engine._compiled(rows)
  lengths = np.full(prompts, 3, np.int32)
  params, weights = engine.weights(params)
  state, cache, uniforms = start(
    params,
    weights,
    np.zeros((prompts, 16), np.int32),
    lengths,
    jax.random.key(0),
    np.arange(prompts, dtype=np.int32),
    np.arange(num_rollouts, dtype=np.int32),
    np.ones(rows, bool),
    rollouts=num_rollouts,
    length=8,
    places=8,
  )
  arguments = (lengths, cache, uniforms, np.int32(8))
  program = advance.lower(weights, state, *arguments).compile().as_text()
  share = rows // shards
  assert rows_of_one_device(state) == {share}
  assert rows_of_one_device(advance(weights, state, *arguments)) == {share}
  if silent:  # copies of the model have nothing to tell each other but that they are done
    assert "all-gather" not in program
  if prompts % shards == 0:
    assert cache[0].key.addressable_shards[0].data.shape[0] == prompts // shards


def main() -> None:
  assert jax.device_count() == 4
  check(4, 2, shards=4, silent=True, data=4)
  check(1, 8, shards=4, silent=True, data=4)
  check(3, 4, shards=4, silent=False, data=4)
  check(3, 2, shards=1, silent=False, data=4)  # six rows are not to be divided by four
  check(4, 2, shards=2, silent=False, data=2, tensor=2)
  check(2, 3, shards=2, silent=False, data=2, fsdp=2)
  check(4, 2, shards=4, silent=True, fsdp=4)


@pytest.mark.slow
def test_copies_of_the_model_share_the_rows():
  root = pathlib.Path(__file__).parents[2]
  done = subprocess.run(
    [sys.executable, "-c", _SCRIPT], cwd=root, capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stderr


_SCRIPT = """
import jax
jax.config.update("jax_num_cpu_devices", 4)
from tests.rollout.test_devices import main
main()
"""
