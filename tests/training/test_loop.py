"""Whole runs of a tiny policy: what is written, what is the same, what is refused."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tea_jax.advantages import grpo, tea
from tea_jax.models.weights.peft import load_adapters
from tea_jax.runs.build import build
from tea_jax.runs.checkpoints import CheckpointError
from tea_jax.runs.config import load_config
from tea_jax.runs.folder import RunFolder
from tea_jax.runs.log import read_jsonl
from tea_jax.training.loop import Run
from tests.training import tiny


@pytest.fixture(scope="module")
def policy():
  return tiny.policy()


def test_a_run_writes_its_folder(tmp_path, policy):
  before = tiny.leaf_bytes(policy.params)
  result = tiny.run(tiny.config(tmp_path / "run"), policy)
  folder = tmp_path / "run"
  assert load_config(folder / "config.yaml") == tiny.config(folder)
  assert [line["step"] for line in result.metrics] == [0, 1, 2, 3]
  assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["2", "4"]
  assert (folder / "policy" / "model.safetensors").exists()
  samples = read_jsonl(folder / "rollouts" / "samples.jsonl")
  assert {s["step"] for s in samples} == {0, 2}
  assert len(samples[0]["completions"]) == 4
  assert tiny.leaf_bytes(policy.params) == before, "training must leave the caller's weights alone"
  assert tiny.leaf_bytes(result.policy.params) != before


def test_metrics_have_the_names_that_users_expect(tmp_path, policy):
  config = tiny.config(tmp_path / "run", steps=1, objective={"kl_coefficient": 0.1})
  seen = {}
  tiny.run(config, policy, on_step=lambda step, record: seen.update(record))
  expected = (
    "reward/mean reward/std reward/max reward/p50 frac_reward_zero_std best_of_n/1 best_of_n/8 "
    "advantage/mean advantage/std advantage/nonzero_frac completions/mean_length "
    "completions/clipped_ratio entropy kl policy_loss grad_norm learning_rate skipped num_tokens "
    "sampler/logp_difference/mean sampler/logp_difference/p95 sampler/importance_ratio/max "
    "predicted_best_of_budget tail/threshold effective_rollouts time/rollout time/reward "
    "time/advantage time/update time/step tokens_per_second/rollout memory/host_gb overhead_frac"
  )
  assert set(expected.split()) <= set(seen)
  assert abs(seen["kl"]) < 1e-6, "the policy starts as the reference"
  assert seen["sampler/logp_difference/max"] < 1e-4, "sampler and trainer agree"


def test_the_reward_rises(tmp_path, policy):
  config = tiny.config(tmp_path / "run", steps=30, checkpoint={"every": 0})
  metrics = tiny.run(config, policy, rule=grpo()).metrics
  first, last = (np.mean([m["reward/mean"] for m in part]) for part in (metrics[:5], metrics[-5:]))
  assert last > first + 0.1


def test_columns_that_some_prompts_lack_reach_the_reward_in_every_step(tmp_path, policy):
  seen = []

  def reward(prompts, completions, answer):
    seen.extend(answer)
    return tiny.reward(prompts, completions)

  splits = tiny.splits()
  splits["train"][0] = dataclasses.replace(splits["train"][0], columns={"answer": "5"})
  config = tiny.config(tmp_path / "run", steps=5, data={"prompts_per_step": 1})
  tiny.run(config, policy, splits=splits, reward=reward)
  assert None in seen


def test_a_skipped_update_among_several_is_counted(tmp_path, policy, monkeypatch):
  config = tiny.config(tmp_path / "run", steps=1, optimizer={"updates_per_batch": 3})
  console = tiny.console()
  parts = build(config, policy=policy, splits=tiny.splits(), reward=tiny.reward)
  run = Run(parts, RunFolder(config), console=console)
  update, calls = run.learner.update, []

  def sometimes_nan(trainable, optimizer, frozen, batch, rate, beta):
    calls.append(1)
    if len(calls) == 2:
      advantages = jax.numpy.full_like(batch.advantages, jax.numpy.nan)
      batch = batch._replace(advantages=advantages)
    return update(trainable, optimizer, frozen, batch, rate, beta)

  monkeypatch.setattr(run, "learner", dataclasses.replace(run.learner, update=sometimes_nan))
  metrics = run.train().metrics
  assert metrics[0]["skipped"] == 1
  assert "step 1, update 2: the gradient is not finite" in console.file.getvalue()


def test_unscored_rollouts_get_no_advantage(tmp_path, policy):
  def reward(prompts, completions):
    scores = tiny.reward(prompts, completions).tolist()
    scores[2] = None
    return scores

  result = tiny.run(tiny.config(tmp_path / "run", steps=2), policy, reward=reward)
  assert result.metrics[0]["reward/scored_frac"] == 15 / 16


@pytest.mark.parametrize("pattern, read", [("", False), (r"(\S)", True)])
def test_answers_that_vote_are_read_by_the_pattern(tmp_path, policy, pattern, read):
  def reward(prompts, completions):
    return [float(len(text) % 2) for text in completions]

  config = tiny.config(
    tmp_path / "run",
    steps=1,
    advantage={"name": "cat_majority", "budget": 8},
    reward={"answer_pattern": pattern},
  )
  result = tiny.run(config, policy, reward=reward)
  assert (result.metrics[0]["answers/read_frac"] > 0) == read


def test_selection_keeps_the_best_weights(tmp_path, policy):
  config = tiny.config(tmp_path / "run", steps=6, validation={"every": 2})
  result = tiny.run(config, policy, rule=grpo())
  scores = {
    m["step"] + 1: m["validation/top_mean"] for m in result.metrics if "validation/top_mean" in m
  }
  assert set(scores) == {2, 4, 6}
  assert result.best is not None
  assert result.best.score == max(scores.values())
  assert result.best.step == min(s for s, v in scores.items() if v == max(scores.values()))
  assert not (tmp_path / "run" / "best_policy").exists()


def test_rules_start_alike_and_share_compiled_functions(tmp_path, policy):
  one = tiny.run(tiny.config(tmp_path / "tea", seed=3), policy, rule=tea())
  compiled = _count_compiles()
  two = tiny.run(tiny.config(tmp_path / "grpo", seed=3), policy, rule=grpo())
  same = ("reward/mean", "completions/mean_length", "entropy")
  assert [one.metrics[0][n] for n in same] == [two.metrics[0][n] for n in same]
  assert one.metrics[-1]["reward/mean"] != two.metrics[-1]["reward/mean"]
  names = compiled()
  assert any("advantages" in name for name in names), "the other rule compiles its advantages"
  assert not [n for n in names if "update" in n or "_group" in n], names


def _count_compiles():
  """Call it before, call its result after: the names of what was compiled in between."""
  import logging

  names = []

  class Handler(logging.Handler):
    def emit(self, record):
      text = record.getMessage()
      if text.startswith("Compiling "):
        names.append(text.split()[1])

  handler, logger = Handler(), logging.getLogger("jax._src.interpreters.pxla")
  logger.addHandler(handler)
  level = logger.level
  logger.setLevel(logging.DEBUG)

  def stop():
    logger.removeHandler(handler)
    logger.setLevel(level)
    return names

  return stop


@pytest.mark.slow
@pytest.mark.parametrize(
  "changes",
  [
    {},
    {"validation": {"every": 3}, "objective": {"kl_coefficient": 0.1}},
    {"validation": {"every": 3, "num_samples": 4}},
    {
      "optimizer": {"updates_per_batch": 2, "micro_batch_rollouts": 4},
      "objective": {"clip_epsilon_low": 0.2, "clip_epsilon_high": 0.2},
    },
    {"advantage": {"name": "cat_best_of_n", "quantile": "tracked"}},
    {"advantage": {"name": "subset_tea"}, "sampling": {"num_rollouts": 16}},
  ],
  ids=["plain", "selection-kl", "small-selection", "ppo", "tracked", "subsets"],
)
def test_nothing_compiles_after_the_second_step(tmp_path, policy, changes):
  started = {}

  def watch(step, record):
    if step == 1:
      started["stop"] = _count_compiles()
    if step == 5:  # The export after the last step slices the stacked layers.
      started["names"] = started["stop"]()

  config = tiny.config(
    tmp_path / "run", steps=6, **{"checkpoint": {"final_policy": "last"}, **changes}
  )
  tiny.run(config, policy, on_step=watch)
  assert started["names"] == []


@pytest.mark.slow
@pytest.mark.parametrize(
  "objective",
  [
    {"kl_coefficient": 0.05, "kl_placement": "reward", "kl_estimator": "k1"},
    {"truncated_rollouts": "mask"},
    {"truncated_rollouts": "penalise", "truncation_penalty": 0.5},
    {"entropy_coefficient": 0.01},
    {"measure_kl": True, "importance_cap": 2.0},
  ],
)
def test_every_objective_runs(tmp_path, policy, objective):
  metrics = tiny.run(tiny.config(tmp_path / "run", steps=2, objective=objective), policy).metrics
  assert all(np.isfinite(m["grad_norm"]) and m["skipped"] == 0 for m in metrics)


@pytest.mark.slow
def test_adapters_train_on_frozen_weights(tmp_path, policy):
  config = tiny.config(
    tmp_path / "run",
    model={"lora_rank": 2},
    objective={"kl_coefficient": 0.1},
    optimizer={"learning_rate": 0.1},
  )
  result = tiny.run(config, policy)
  assert abs(result.metrics[0]["kl"]) < 1e-6
  assert result.metrics[-1]["kl"] > 1e-6
  changed = jax.tree.map(lambda a, b: bool((a != b).any()), result.policy.params, policy.params)
  assert changed["layers"]["attention"]["query"]["kernel"]
  assert not changed["embed"]["embedding"]


@pytest.mark.slow
@pytest.mark.parametrize("compute, difference", [("float32", 1e-4), ("bfloat16", 0.2)])
def test_adapters_train_beside_weights_in_bfloat16(tmp_path, policy, compute, difference):
  folder = tmp_path / "model"
  policy.save_pretrained(folder)
  model = {"name": str(folder), "param_dtype": "bfloat16", "compute_dtype": compute}
  config = tiny.config(
    tmp_path / "run",
    model={"lora_rank": 2, **model},
    objective={"measure_kl": True},
    optimizer={"learning_rate": 1e-3},
  )
  result = tiny.run(config, None)
  kernel = result.policy.params["layers"]["attention"]["query"]["kernel"]
  assert result.policy.params["embed"]["embedding"].dtype == jnp.bfloat16
  assert kernel.dtype == compute
  # The sampler's merged kernels keep what bfloat16 would round away.
  assert result.metrics[-1]["sampler/logp_difference/max"] < difference
  assert result.metrics[-1]["kl"] > 0
  adapters, _ = load_adapters(result.run_folder / "adapter", policy.config)
  assert {leaf.dtype for leaf in jax.tree.leaves(adapters)} == {np.dtype(np.float32)}


def test_poisoned_gradients_stop_the_run_after_a_few_skips(tmp_path, policy):
  bad = dataclasses.replace(
    policy, params=jax.tree.map(lambda x: x * np.float32(np.nan), policy.params)
  )
  config = tiny.config(tmp_path / "run", steps=9, optimizer={"max_skipped": 3})
  with pytest.raises(FloatingPointError, match="3 updates in a row"):
    tiny.run(config, bad)


def test_an_unwritable_folder_is_refused_before_anything_runs(policy):
  with pytest.raises(CheckpointError, match="cannot be written"):
    tiny.run(tiny.config("/proc/nothing"), policy)


@pytest.mark.slow
def test_memory_stays_constant(tmp_path, policy):
  live, resident = [], []

  def watch(step, record):
    if step % 20 == 19:
      live.append(len(jax.live_arrays()))
      resident.append(record["memory/host_gb"])

  config = tiny.config(
    tmp_path / "run", steps=200, checkpoint={"every": 50}, validation={"every": 50}
  )
  tiny.run(config, policy, on_step=watch)
  assert max(live[1:]) == min(live[1:])
  assert resident[-1] - resident[3] < 0.02, resident


def test_config_and_metrics_are_valid_json(tmp_path, policy):
  tiny.run(tiny.config(tmp_path / "run", steps=1), policy)
  for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
    assert "NaN" not in line
    json.loads(line)
