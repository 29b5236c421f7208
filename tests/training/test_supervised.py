"""Supervised runs: what is learnt, and that stops, micro-batches and padding change nothing."""

import dataclasses
import os
import pathlib
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tea_jax.data.supervised import encode_pairs
from tea_jax.models.weights.load import load_policy
from tea_jax.runs.optimizer import OptimizerConfig
from tea_jax.runs.supervised import SupervisedObjectiveConfig
from tea_jax.training.pair_batches import make_batch, row_keys
from tea_jax.training.supervised_update import supervised_functions
from tests.training import supervised_tiny, tiny

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def policy():
  return tiny.policy()


@pytest.fixture(scope="module")
def pairs():
  return encode_pairs(
    supervised_tiny.splits()["train"],
    tiny.tokenizer(),
    end_token=0,
    max_length=16,
    template="raw",
  )


def one_update(policy, batch, *, objective="hybrid", **optimizer):
  functions = supervised_functions(
    policy,
    None,
    SupervisedObjectiveConfig(name=objective),
    OptimizerConfig(name="sgd", beta1=0.0, **optimizer),
  )
  trainable = jax.tree.map(jnp.copy, policy.params)
  state = functions.trained.init_optimizer(trainable)
  done = functions.update(trainable, state, {}, batch, np.float32(0.1))
  return done.trainable, done.metrics


def batch_of(pairs, chosen, **options):
  chosen = np.asarray(chosen)
  return make_batch(pairs, chosen, keys=row_keys(jax.random.key(3), chosen), **options)


def assert_same(first, second, rtol=2e-5):
  for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
    np.testing.assert_allclose(a, b, rtol=rtol, atol=2e-6)


def test_a_run_learns_its_pairs_and_leaves_a_policy(tmp_path, policy):
  result = supervised_tiny.run(supervised_tiny.config(tmp_path / "run", steps=60), policy)
  assert result.metrics[-1]["nll_per_token"] < 0.5 * result.metrics[0]["nll_per_token"]
  assert result.best is not None
  last = result.metrics[-1]
  assert last["validation/best_step"] == result.best.step
  assert result.best.score == -min(m["validation/loss"] for m in result.metrics if len(m) > 20)
  stored = load_policy(str(result.policy_folder))
  assert_same(stored.params, result.policy.params)


def test_going_on_ends_with_the_same_bits(tmp_path, policy):
  whole = supervised_tiny.run(supervised_tiny.config(tmp_path / "whole"), policy)

  def stop(step, record):
    if step == 4:
      raise RuntimeError

  config = supervised_tiny.config(tmp_path / "parts")
  with pytest.raises(RuntimeError):
    supervised_tiny.run(config, policy, on_step=stop)
  parts = supervised_tiny.run(config, policy)
  assert tiny.leaf_bytes(parts.policy.params) == tiny.leaf_bytes(whole.policy.params)
  for name in ("metrics.jsonl", "policy/model.safetensors"):
    assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
  assert parts.best == whole.best


@pytest.mark.slow
def test_a_run_killed_in_the_middle_ends_with_the_same_bits(tmp_path, policy):
  whole = supervised_tiny.run(supervised_tiny.config(tmp_path / "whole", steps=8), policy)
  killed = tmp_path / "killed"
  environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
  environment["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path / "cache")
  environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
  for stage, count in (("checkpoint", 2), ("update", 3), ("validation", 1), ("never", 1)):
    process = subprocess.Popen(
      [sys.executable, "-m", "tests.training.supervised_tiny", str(killed)],
      cwd=ROOT,
      env=environment,
      stdout=subprocess.PIPE,
      text=True,
    )
    assert process.stdout is not None
    seen = 0
    for line in process.stdout:
      seen += line.strip() == stage
      if seen == count:
        process.send_signal(signal.SIGKILL)
        break
    process.communicate()
  assert process.returncode == 0
  for name in ("metrics.jsonl", "policy/model.safetensors"):
    assert (killed / name).read_bytes() == (whole.run_folder / name).read_bytes(), name


@pytest.mark.slow
def test_micro_batches_add_up_to_the_batch(policy, pairs):
  batch = batch_of(pairs, range(8))
  whole, metrics = one_update(policy, batch)
  parts, again = one_update(policy, batch, micro_batch_rollouts=2)
  assert_same(whole, parts)
  for name, value in metrics.items():
    np.testing.assert_allclose(value, again[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_padding_and_rows_that_fill_up_are_not_trained(policy, pairs):
  batch = batch_of(pairs, range(6))
  garbage = jnp.pad(batch.tokens, ((0, 0), (0, 8)), constant_values=7)
  beyond = jnp.arange(garbage.shape[1]) >= batch.lengths[:, None]
  wider = batch._replace(tokens=jnp.where(beyond, 9, garbage))
  first, metrics = one_update(policy, batch)
  assert_same(first, one_update(policy, wider)[0])
  filled = make_batch(
    pairs, np.arange(6), rows=8, keys=row_keys(jax.random.key(3), np.resize(np.arange(6), 8))
  )
  second, again = one_update(policy, filled)
  assert_same(first, second)
  np.testing.assert_allclose(metrics["probability/mean"], again["probability/mean"], rtol=1e-5)


def test_prompts_are_not_trained(policy, pairs):
  # The loss depends on a prompt token only through what follows: its own likelihood is no part.
  batch = batch_of(pairs, [0, 1])
  functions = supervised_functions(
    policy, None, SupervisedObjectiveConfig(name="cross_entropy"), OptimizerConfig()
  )
  losses, log_p = functions.evaluate(policy.params, {}, batch)
  np.testing.assert_allclose(losses, -np.asarray(log_p), rtol=1e-6)
  hidden = policy.hidden_states(policy.params, batch.tokens, batch.lengths)
  table = jax.nn.log_softmax(policy.logits(policy.params, hidden))
  for row in range(2):
    places = range(int(batch.prompt_lengths[row]), int(batch.lengths[row]))
    expected = sum(float(table[row, t - 1, batch.tokens[row, t]]) for t in places)
    np.testing.assert_allclose(log_p[row], expected, rtol=1e-5)


@pytest.mark.slow
def test_adapters_learn_and_the_weights_stay(tmp_path, policy):
  config = supervised_tiny.config(tmp_path / "lora", steps=20, model={"lora_rank": 2})
  result = supervised_tiny.run(config, policy)
  assert result.metrics[-1]["loss"] < result.metrics[0]["loss"]
  embedding = result.policy.params["embed"]["embedding"]
  np.testing.assert_array_equal(embedding, policy.params["embed"]["embedding"])


def test_the_best_held_out_weights_are_kept(tmp_path, policy):
  config = supervised_tiny.config(
    tmp_path / "best", optimizer={"learning_rate": 0.3}, checkpoint={"final_policy": "best"}
  )
  result = supervised_tiny.run(config, policy)
  validated = [line for line in result.metrics if "validation/loss" in line]
  lowest = min(validated, key=lambda line: line["validation/loss"])
  assert result.best is not None
  assert result.best.step == lowest["step"] + 1
  stored = load_policy(str(result.policy_folder))
  same = tiny.leaf_bytes(stored.params) == tiny.leaf_bytes(result.policy.params)
  assert same == (result.best.step == config.steps)


def test_another_objective_does_not_go_on_in_the_folder(tmp_path, policy):
  config = supervised_tiny.config(tmp_path / "run", steps=2)
  supervised_tiny.run(config, policy)
  other = dataclasses.replace(config, objective=SupervisedObjectiveConfig(name="cross_entropy"))
  with pytest.raises(ValueError, match=r"another config \(objective.name"):
    supervised_tiny.run(other, policy)


def test_too_few_pairs_and_too_long_pairs_are_one_sentence(tmp_path, policy):
  with pytest.raises(ValueError, match="batch_size=4 must lie between 1 and"):
    supervised_tiny.run(
      supervised_tiny.config(tmp_path / "a"), policy, splits=supervised_tiny.splits(3)
    )
  long = supervised_tiny.config(tmp_path / "b", data={"max_length": 2})
  with pytest.raises(ValueError, match="longer than max_length=2"):
    supervised_tiny.run(long, policy)
  beyond = supervised_tiny.config(tmp_path / "c", data={"max_length": 999})
  with pytest.raises(ValueError, match="max_length=999 is beyond the model's context of 64"):
    supervised_tiny.run(beyond, policy)
