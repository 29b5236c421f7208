"""Runs that stop and go on: the same bits, nothing lost, and what is refused."""

import dataclasses

import jax
import jax.monitoring
import numpy as np
import pytest

from tea_jax.rewards import RewardError
from tea_jax.runs.checkpoints import CheckpointError
from tea_jax.runs.folder import RunFolder
from tea_jax.runs.log import read_jsonl
from tests.training import tiny


@pytest.fixture(scope="module")
def policy():
  return tiny.policy()


def test_going_on_ends_with_the_same_bits(tmp_path, policy):
  whole = tiny.run(tiny.config(tmp_path / "whole", steps=6, validation={"every": 2}), policy)

  class Stop(Exception):
    pass

  def stop_at(step, record):
    if step == 4:
      raise Stop

  config = tiny.config(tmp_path / "parts", steps=6, validation={"every": 2})
  with pytest.raises(Stop):
    tiny.run(config, policy, on_step=stop_at)
  parts = tiny.run(config, policy)
  assert tiny.leaf_bytes(parts.policy.params) == tiny.leaf_bytes(whole.policy.params)
  for name in ("metrics.jsonl", "rollouts/samples.jsonl"):
    assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
  assert parts.best == whole.best
  files = [tmp_path / n / "policy" / "model.safetensors" for n in ("parts", "whole")]
  assert files[0].read_bytes() == files[1].read_bytes()


def test_going_on_compiles_nothing_that_a_run_from_the_start_has_compiled(tmp_path, policy):
  class Stop(Exception):
    pass

  compiled: list[str] = []

  def stop_at(step, record):
    if step == 1:
      raise Stop

  def listen(event, **details):
    if event == "/jax/compilation_cache/cache_misses":
      compiled.append(event)

  config = tiny.config(tmp_path / "run", steps=4, checkpoint={"every": 1})
  with pytest.raises(Stop):
    tiny.run(config, policy, on_step=stop_at)
  jax.clear_caches()  # as in a new process; programs on disk stay
  jax.monitoring.register_event_listener(listen)
  try:
    tiny.run(config, policy)
  finally:
    jax.monitoring.unregister_event_listener(listen)
  # The update and the sampler are found again; slices of a resume itself are small.
  assert len(compiled) <= 2


def test_a_finished_run_is_not_run_again(tmp_path, policy):
  config = tiny.config(tmp_path / "run")
  first = tiny.run(config, policy)

  def fail(step, record):
    raise AssertionError("no step is left")

  again = tiny.run(config, policy, on_step=fail)
  assert again.metrics == first.metrics
  assert tiny.leaf_bytes(again.policy.params) == tiny.leaf_bytes(first.policy.params)


def test_another_config_in_the_folder_is_refused(tmp_path, policy):
  tiny.run(tiny.config(tmp_path / "run"), policy)
  with pytest.raises(ValueError, match=r"seed: 0 -> 1"):
    tiny.run(tiny.config(tmp_path / "run", seed=1), policy)


def test_two_processes_may_not_share_a_folder(tmp_path, policy):
  config = tiny.config(tmp_path / "run")
  folder = RunFolder(config)
  try:
    with pytest.raises(CheckpointError, match="another process is training"):
      tiny.run(config, policy)
  finally:
    folder.close()


def test_a_failing_reward_keeps_completions_and_progress(tmp_path, policy):
  calls = []

  def reward(prompts, completions):
    calls.append(1)
    scores = tiny.reward(prompts, completions)
    if len(calls) == 4:
      scores[5] = np.nan
    return scores

  config = tiny.config(tmp_path / "run", steps=5, checkpoint={"every": 0})
  with pytest.raises(RewardError, match=r"returned nan for prompt 0 \(.*rollout 5"):
    tiny.run(config, policy, reward=reward)
  kept = read_jsonl(tmp_path / "run" / "rollouts" / "unscored_step_3.jsonl")
  assert len(kept) == 16
  assert [line["rewards"]["reward"] for line in kept].index("nan") == 5
  steps = []
  parts = tiny.run(config, policy, on_step=lambda step, record: steps.append(step))
  assert steps == [3, 4]
  whole = tiny.run(tiny.config(tmp_path / "whole", steps=5, checkpoint={"every": 0}), policy)
  assert tiny.leaf_bytes(parts.policy.params) == tiny.leaf_bytes(whole.policy.params)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_stop_during_the_validation_loses_no_step(tmp_path, policy, error):
  options = {"steps": 6, "validation": {"every": 3}, "checkpoint": {"every": 0}}
  whole = tiny.run(tiny.config(tmp_path / "whole", **options), policy)
  calls = []

  def reward(prompts, completions):
    calls.append(len(completions))
    if len(calls) == 5:  # three steps, and the second call of the first validation
      raise error("not now")
    return tiny.reward(prompts, completions)

  config = tiny.config(tmp_path / "parts", **options)
  expected = KeyboardInterrupt if error is KeyboardInterrupt else RewardError
  with pytest.raises(expected):
    tiny.run(config, policy, reward=reward)
  if expected is KeyboardInterrupt:  # a reward that failed may be mended, another one not
    with pytest.raises(ValueError, match="another reward"):
      tiny.run(config, policy)
    checkpoint = dataclasses.replace(config.checkpoint, accept_changes=True)
    config = dataclasses.replace(config, checkpoint=checkpoint)
  steps = []
  parts = tiny.run(config, policy, on_step=lambda step, record: steps.append(step))
  assert steps == [2, 3, 4, 5], "step 2 was done and lacked its validation only"
  assert tiny.leaf_bytes(parts.policy.params) == tiny.leaf_bytes(whole.policy.params)
  for name in ("metrics.jsonl", "rollouts/samples.jsonl"):
    assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
  assert parts.best == whole.best


def test_other_prompts_are_refused_on_going_on(tmp_path, policy):
  config = tiny.config(tmp_path / "run", checkpoint={"every": 0})
  with pytest.raises(RewardError):
    tiny.run(config, policy, reward=lambda prompts, completions: [np.nan] * len(prompts))
  splits = tiny.splits()
  splits["train"][3] = dataclasses.replace(splits["train"][3], text="w9 w9 w9")
  with pytest.raises(ValueError, match="prompts of this run are other ones"):
    tiny.run(config, policy, splits=splits)


def test_another_final_policy_is_refused_on_going_on(tmp_path, policy):
  changes = {"steps": 2, "validation": {"every": 2}}
  tiny.run(tiny.config(tmp_path / "run", checkpoint={"final_policy": "last"}, **changes), policy)
  with pytest.raises(ValueError, match=r"checkpoint.final_policy: 'last' -> 'best'"):
    tiny.run(tiny.config(tmp_path / "run", checkpoint={"final_policy": "best"}, **changes), policy)


def test_a_selected_policy_that_is_gone_is_named(tmp_path, policy):
  config = tiny.config(tmp_path / "run", steps=2, validation={"every": 2})
  tiny.run(config, policy)
  (tmp_path / "run" / "policy").rename(tmp_path / "mine")
  with pytest.raises(CheckpointError, match="the selected policy, of step 2, is neither in"):
    tiny.run(config, policy)


def test_best_weights_of_kept_checkpoints_stay_until_they_are_gone(tmp_path, policy):
  kept = {}

  def watch(step, record):
    folder = tmp_path / "run" / "best_policy"
    kept[step] = {int(p.name) for p in folder.iterdir() if p.is_dir()}

  # A reward that rises at every call makes every validation the best so far.
  scores = iter(range(1000))

  def reward(prompts, completions):
    return [next(scores)] * len(prompts)

  config = tiny.config(
    tmp_path / "run", steps=4, validation={"every": 1}, checkpoint={"every": 1, "keep": 2}
  )
  tiny.run(config, policy, reward=reward, on_step=watch)
  assert kept == {0: {1}, 1: {1, 2}, 2: {1, 2, 3}, 3: {2, 3, 4}}


def test_another_base_model_is_refused_where_it_is_the_reference(tmp_path, policy):
  options = {"steps": 2, "checkpoint": {"every": 1}, "objective": {"kl_coefficient": 0.5}}
  config = tiny.config(tmp_path / "run", **options)

  def stop(step, record):
    if step == 1:
      raise RuntimeError("stopped")

  with pytest.raises(RuntimeError, match="stopped"):
    tiny.run(config, policy, on_step=stop)
  with pytest.raises(ValueError, match="another base model"):
    tiny.run(config, tiny.policy(seed=5))
