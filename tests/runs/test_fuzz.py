"""Damaged run folders and configs: the same run goes on, or one sentence that names the file."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tea_jax.runs import state as run_state
from tea_jax.runs.checkpoints import CheckpointError, CheckpointStore
from tea_jax.runs.config import RunConfig, load_config, save_config
from tea_jax.runs.folder import RunFolder
from tea_jax.runs.log import JsonlLog, read_jsonl
from tea_jax.runs.state import Best, State, restore_state, save_state
from tests.fuzzing import damaged, damaged_value, numbers, read_or_refused

FRESH = State(
  {"w": jnp.arange(6.0)}, {"m": jnp.zeros(6)}, (), {"epoch": 0, "position": 0}, kl_control=(0.1,)
)
LATER = FRESH._replace(iterator={"epoch": 1, "position": 4}, best=Best(2, 0.5), skipped=1)
LOGS = {"metrics.jsonl": 100, "timings.jsonl": 80}


def _save(store, step):
  later = LATER._replace(trainable={"w": jnp.arange(6.0) + step})
  save_state(
    store, step, later, root=jax.random.key(0), log_offsets=LOGS, prompts=5, identity={"rule": "a"}
  )


def _fresh():
  return FRESH._replace(optimizer={"m": jnp.zeros(6)})  # which a restore frees


def _restore(folder):
  """The step, and that all else is what was saved with it."""
  found = restore_state(
    CheckpointStore(folder, announce=lambda text: None),
    _fresh(),
    jax.random.key(1),
    prompts=5,
    identity={"rule": "a"},
  )
  assert found.state.iterator == LATER.iterator
  assert found.state.best == LATER.best
  assert found.log_offsets == LOGS
  np.testing.assert_array_equal(found.state.trainable["w"], np.arange(6.0) + found.step)
  np.testing.assert_array_equal(
    jax.random.key_data(found.root), jax.random.key_data(jax.random.key(0))
  )
  return found.step


def test_damaged_bytes_of_a_checkpoint_cost_at_most_its_steps(tmp_path):
  folder = tmp_path / "checkpoints"
  store = CheckpointStore(folder)
  for step in (2, 4):
    _save(store, step)
  store.close()
  files = sorted(path for path in (folder / "4").rglob("*") if path.is_file())
  whole = {path: path.read_bytes() for path in files}
  for rng in numbers(40):  # a restore takes a tenth of a second
    changed = rng.choice(files)
    changed.write_bytes(damaged(whole[changed], rng))
    with read_or_refused(CheckpointError, names="checkpoints"):
      assert _restore(folder) in (2, 4)
    aside = tmp_path / "corrupt_checkpoints" / "4.corrupt"
    if aside.exists():
      aside.rename(folder / "4")
    changed.write_bytes(whole[changed])
  assert _restore(folder) == 4


def test_damaged_values_of_a_checkpoint_are_refused(tmp_path, monkeypatch):
  saved = {}
  monkeypatch.setattr(CheckpointStore, "save", lambda self, step, arrays, meta: saved.update(meta))
  _save(CheckpointStore(tmp_path), 4)
  good = json.loads(json.dumps(saved))
  for rng in numbers():
    meta = damaged_value(good, rng)
    # What `restore_latest` counts as a checkpoint that cannot be read.
    with read_or_refused(ValueError, KeyError, TypeError, OverflowError):
      iterator, best, skipped, logs = run_state._from_meta(meta)
      assert all(type(value) is int for value in (*iterator.values(), skipped, *logs.values()))
      assert best is None or best.step >= 0
      run_state._kl_control(meta)


def _config(folder):
  return RunConfig(run_folder=str(folder))


def test_damaged_run_folders_are_opened_or_refused(tmp_path):
  folder = tmp_path / "run"
  RunFolder(_config(folder)).close()
  (folder / "finished.json").write_text('{"policy_step": 3}\n')
  (folder / "metrics.jsonl").write_text('{"step": 0, "reward/mean": 0.5}\n' * 3)
  whole = {name: (folder / name).read_bytes() for name in ("config.yaml", "metrics.jsonl")}
  for rng in numbers():
    name = rng.choice(list(whole))
    (folder / name).write_bytes(damaged(whole[name], rng))
    with read_or_refused(ValueError, CheckpointError, names="run"):
      RunFolder(_config(folder)).close()
    with read_or_refused(ValueError, names="metrics.jsonl"):
      assert all(isinstance(record, dict) for record in read_jsonl(folder / "metrics.jsonl"))
    for name, raw in whole.items():
      (folder / name).write_bytes(raw)


def test_logs_are_never_written_through_a_link(tmp_path):
  (tmp_path / "precious").write_text("precious")
  (tmp_path / "metrics.jsonl").symlink_to(tmp_path / "precious")
  with pytest.raises(ValueError, match=r"metrics\.jsonl cannot be opened"):
    JsonlLog(tmp_path / "metrics.jsonl")
  assert (tmp_path / "precious").read_text() == "precious"


def test_damaged_yaml_is_a_config_or_refused(tmp_path):
  file = tmp_path / "c.yaml"
  save_config(RunConfig(), file)
  raw = file.read_bytes()
  for rng in numbers():
    file.write_bytes(damaged(raw, rng))
    with read_or_refused(ValueError, names="c.yaml"):
      config = load_config(file)
      save_config(config, tmp_path / "again.yaml")
      assert load_config(tmp_path / "again.yaml") == config


def test_damaged_values_of_yaml_are_a_config_or_refused(tmp_path):
  import yaml

  file = tmp_path / "c.yaml"
  save_config(RunConfig(), file)
  good = yaml.safe_load(file.read_text())
  for rng in numbers():
    file.write_text(yaml.safe_dump(damaged_value(good, rng)))
    with read_or_refused(ValueError, names="c.yaml"):
      config = load_config(file)
      save_config(config, tmp_path / "again.yaml")
      assert load_config(tmp_path / "again.yaml") == config
