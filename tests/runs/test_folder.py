"""Run folders: locks that act on nothing else, restarts and ends that lose nothing."""

import errno
import fcntl
import os

import numpy as np
import pytest

from tea_jax.models.lora import LoraConfig, init_adapters
from tea_jax.models.weights.peft import load_adapters
from tea_jax.runs.checkpoints import CheckpointError
from tea_jax.runs.config import RunConfig
from tea_jax.runs.folder import RunFolder
from tea_jax.runtime.keys import make_key
from tests.training import tiny


def config(tmp_path, **changes):
  return RunConfig(run_folder=str(tmp_path / "run"), **changes)


def test_the_lock_follows_no_link_and_waits_for_no_pipe(tmp_path):
  (tmp_path / "run").mkdir()
  (tmp_path / "precious").write_text("precious")
  for name in (".lock", ".write_probe"):
    (tmp_path / "run" / name).symlink_to(tmp_path / "precious")
  with pytest.raises(CheckpointError, match=r"\.lock"):
    RunFolder(config(tmp_path))
  assert (tmp_path / "precious").read_text() == "precious"
  (tmp_path / "run" / ".lock").unlink()
  os.mkfifo(tmp_path / "run" / ".lock")
  with pytest.raises(CheckpointError, match=r"\.lock is no plain file"):
    RunFolder(config(tmp_path))


def test_a_second_process_is_refused_and_missing_locks_are_said(tmp_path, monkeypatch):
  held = RunFolder(config(tmp_path))
  with pytest.raises(CheckpointError, match="another process"):
    RunFolder(config(tmp_path))
  held.close()

  def no_locks(*_):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

  monkeypatch.setattr(fcntl, "flock", no_locks)
  with pytest.warns(UserWarning, match="no locks"):
    RunFolder(config(tmp_path)).close()


def test_a_start_that_failed_before_its_first_step_binds_nothing(tmp_path):
  RunFolder(config(tmp_path)).close()
  RunFolder(config(tmp_path, seed=7)).close()
  (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 0}\n')
  with pytest.raises(ValueError, match="another config"):
    RunFolder(config(tmp_path))
  RunFolder(config(tmp_path, seed=7, steps=200)).close()  # a run may be extended


def test_metrics_beyond_a_lost_checkpoint_are_not_emptied(tmp_path):
  folder = RunFolder(config(tmp_path))
  metrics = tmp_path / "run" / "metrics.jsonl"
  metrics.write_text('{"step": 0}\n' * 25)
  folder.check_restart()  # a kill before the first checkpoint, of step 25
  metrics.write_text('{"step": 0}\n' * 26)
  with pytest.raises(CheckpointError, match="no checkpoint"):
    folder.check_restart()
  folder.close()


def test_finishing_keeps_the_best_weights_until_the_policy_stands(tmp_path):
  folder, policy = RunFolder(config(tmp_path)), tiny.policy()
  folder.save_best(policy, policy.params, 3)
  best = folder.path / "best_policy" / "3"
  folder.policy.mkdir()
  (folder.policy / "notes.txt").write_text("mine")
  with pytest.raises(CheckpointError, match=r"notes\.txt"):
    folder.finish(policy, policy.params, 3)
  assert (best / "model.safetensors").is_file()
  (folder.policy / "notes.txt").unlink()
  folder.finish(policy, policy.params, 3)  # an empty folder is no policy
  first = (folder.policy / "model.safetensors").read_bytes()
  folder.finish(policy, policy.params, 3)  # the same end once more
  with pytest.raises(CheckpointError, match="step 4"):
    folder.finish(policy, policy.params, 4)  # a policy of another step is not it
  later = tiny.policy(seed=1)
  folder.save_best(later, later.params, 5)
  folder.finish(later, later.params, 5)  # the run was extended
  assert (folder.policy / "model.safetensors").read_bytes() != first
  assert not (folder.path / "best_policy").exists()
  folder.finish(policy, policy.params, None)
  assert (folder.policy / "model.safetensors").read_bytes() == first
  folder.close()


@pytest.mark.parametrize("damage", ["a bit", "a file"])
def test_damaged_weights_of_the_best_step_are_not_finished(tmp_path, damage):
  folder, policy = RunFolder(config(tmp_path)), tiny.policy()
  folder.save_best(policy, policy.params, 3)
  weights = folder.path / "best_policy" / "3" / "model.safetensors"
  whole = weights.read_bytes()
  if damage == "a bit":
    weights.write_bytes(whole[:-7] + bytes([whole[-7] ^ 4]) + whole[-6:])
    name = "model.safetensors"
  else:
    (weights.parent / "tokenizer.json").unlink()
    name = "tokenizer.json"
  with pytest.raises(CheckpointError, match=rf"{name}, of the selected policy of step 3"):
    folder.finish(policy, policy.params, 3)
  assert not folder.policy.exists()
  folder.save_best(policy, policy.params, 3)
  folder.finish(policy, policy.params, 3)
  assert (folder.policy / "model.safetensors").read_bytes() == whole
  folder.close()


def test_a_run_of_adapters_leaves_the_selected_ones_in_peft_s_format(tmp_path):
  folder, policy = RunFolder(config(tmp_path)), tiny.policy()
  lora = LoraConfig(rank=2, alpha=4.0, targets=("query",))
  for step in (2, 4):
    adapters = init_adapters(policy.config, lora, make_key(step))
    adapters["layers"]["attention"]["query"]["b"] += 1.0
    folder.save_best(policy, policy.params, step)
    folder.save_adapter(policy, adapters, lora, step)
  folder.forget_best({2})
  assert {each.name for each in (folder.path / "best_policy").iterdir()} == {"2", "2.json"}
  folder.finish(policy, policy.params, 2)
  expected = init_adapters(policy.config, lora, make_key(2))["layers"]["attention"]["query"]["a"]
  loaded, read = load_adapters(folder.path / "adapter", policy.config)
  np.testing.assert_array_equal(loaded["layers"]["attention"]["query"]["a"], expected)
  assert read == lora
  assert not (folder.path / "best_adapter").exists()
  folder.close()
