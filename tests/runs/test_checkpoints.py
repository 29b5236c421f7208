"""Checkpoints: bit-exact, whole or absent, and clear about what went wrong."""

import json
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tea_jax.runs import checkpoints
from tea_jax.runs.checkpoints import CheckpointError, CheckpointStore


def _state(seed):
  rng = np.random.default_rng(seed)
  return {
    "params": {"kernel": jnp.asarray(rng.normal(size=(64, 33)), jnp.float32)},
    "optimizer": (jnp.asarray(7 + seed), jnp.asarray(rng.normal(size=5), jnp.bfloat16)),
    "tracked": (),
  }


def _abstract(state):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)


def _assert_same(actual, expected):
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected)):
    assert a.dtype == b.dtype
    assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def _largest_file(folder):
  return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def test_restores_every_bit_and_the_meta(tmp_path):
  store = CheckpointStore(tmp_path)
  store.save(3, _state(0), {"iterator": {"epoch": 1, "position": 8}, "best": None, "key": [0, 7]})
  store.close()
  restored = CheckpointStore(tmp_path).restore_latest(_abstract(_state(1)))
  assert restored is not None
  assert restored.step == 3
  _assert_same(restored.state, _state(0))
  assert restored.meta["iterator"] == {"epoch": 1, "position": 8}
  assert restored.meta["key"] == [0, 7]
  assert restored.meta["best"] is None


def test_what_is_written_in_the_background_is_the_state_that_was_saved(tmp_path):
  overwrite = jax.jit(lambda x: jax.tree.map(lambda leaf: leaf * 0, x), donate_argnums=0)
  state = {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=(2048, 2048)), jnp.float32)}
  saved = np.array(state["kernel"])
  store = CheckpointStore(tmp_path, keep=1, asynchronous=True)
  assert store.num_kept == 2
  for step in (1, 2):
    store.save(step, state, {})
    state = overwrite(state)  # into the memory of what was handed over
    if step == 1:
      state = {"kernel": jnp.asarray(saved)}
  store.close()
  assert store.steps() == [2]
  restored = CheckpointStore(tmp_path).restore_latest(_abstract(state))
  assert restored is not None
  np.testing.assert_array_equal(restored.state["kernel"], saved)


def test_an_empty_folder_has_nothing_to_restore(tmp_path):
  assert CheckpointStore(tmp_path).restore_latest(_abstract(_state(0))) is None


def test_keeps_only_the_latest(tmp_path):
  store = CheckpointStore(tmp_path, keep=2)
  for step in (1, 2, 3):
    store.save(step, _state(step), {})
  assert store.steps() == [2, 3]


def test_saving_a_step_twice_changes_nothing(tmp_path):
  store = CheckpointStore(tmp_path)
  store.save(1, _state(0), {})
  store.save(1, _state(1), {})
  restored = store.restore_latest(_abstract(_state(0)))
  assert restored is not None
  _assert_same(restored.state, _state(0))


@pytest.mark.parametrize("damage", ["truncated", "flipped", "meta"])
def test_a_corrupt_last_checkpoint_falls_back_and_says_so(tmp_path, damage):
  said = []
  store = CheckpointStore(tmp_path / "checkpoints", announce=said.append)
  store.save(1, _state(1), {})
  store.save(2, _state(2), {})
  store.close()
  folder = tmp_path / "checkpoints" / "2"
  if damage == "meta":
    shutil.rmtree(folder / "meta")
  else:
    victim = _largest_file(folder / "state")
    data = bytearray(victim.read_bytes())
    data = data[: len(data) // 2] if damage == "truncated" else data
    data[len(data) // 2] ^= 255
    victim.write_bytes(bytes(data))
  store = CheckpointStore(tmp_path / "checkpoints", announce=said.append)
  restored = store.restore_latest(_abstract(_state(0)))
  assert restored is not None
  assert restored.step == 1
  _assert_same(restored.state, _state(1))
  assert "Checkpoint 2" in said[0]
  assert "falling back" in said[0]
  assert (tmp_path / "corrupt_checkpoints" / "2.corrupt").is_dir()
  store.save(2, _state(3), {})
  assert store.steps() == [1, 2]


def test_nothing_readable_is_an_error(tmp_path):
  store = CheckpointStore(tmp_path / "checkpoints", announce=lambda _: None)
  store.save(1, _state(1), {})
  store.close()
  shutil.rmtree(tmp_path / "checkpoints" / "1" / "state")
  store = CheckpointStore(tmp_path / "checkpoints", announce=lambda _: None)
  # Again and again: the next start of a job must not take the folder for an empty one.
  for _ in range(2):
    store = CheckpointStore(tmp_path / "checkpoints", announce=lambda _: None)
    with pytest.raises(CheckpointError, match="None of the 1 checkpoints"):
      store.restore_latest(_abstract(_state(0)))


@pytest.mark.parametrize(
  "error", [MemoryError(), RuntimeError("RESOURCE_EXHAUSTED: 9 GB"), OSError(5, "I/O error")]
)
def test_a_machine_in_trouble_is_not_a_corrupt_checkpoint(tmp_path, monkeypatch, error):
  store = CheckpointStore(tmp_path / "checkpoints", announce=pytest.fail)
  store.save(1, _state(1), {})
  store.save(2, _state(2), {})

  def fail(*_, **__):
    raise error

  with monkeypatch.context() as patch:
    patch.setattr(store._manager, "restore", fail)
    with pytest.raises(CheckpointError, match=r"Checkpoint 2 .* left as it is"):
      store.restore_latest(_abstract(_state(0)))
  restored = store.restore_latest(_abstract(_state(0)))
  assert restored is not None
  assert restored.step == 2


def test_values_swapped_behind_a_valid_file_are_noticed(tmp_path):
  said = []
  store = CheckpointStore(tmp_path / "checkpoints", announce=said.append)
  store.save(1, _state(1), {})
  store.save(2, _state(2), {})
  store.close()
  root = tmp_path / "checkpoints"
  shutil.rmtree(root / "2" / "state")
  shutil.copytree(root / "1" / "state", root / "2" / "state")
  restored = CheckpointStore(root, announce=said.append).restore_latest(_abstract(_state(0)))
  assert restored is not None
  assert restored.step == 1
  assert "checksums" in said[0]


def test_a_full_disk_is_refused_before_the_write(tmp_path, monkeypatch):
  store = CheckpointStore(tmp_path)
  store.save(4, _state(0), {})
  usage = shutil.disk_usage(tmp_path)._replace(free=1000)
  monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda _: usage)
  with pytest.raises(CheckpointError, match=r"0\.00 GB free.*goes on from step 4"):
    store.save(5, _state(0), {})
  assert store.steps() == [4]


def test_a_disk_that_fills_during_the_write_is_explained(tmp_path, monkeypatch):
  store = CheckpointStore(tmp_path)
  store.save(4, _state(0), {})

  def full(*_, **__):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(store._manager, "save", full)
  with pytest.raises(CheckpointError, match=r"Checkpoint 5 could not.*disk is full.*from step 4"):
    store.save(5, _state(0), {})


def test_a_folder_that_cannot_be_made_is_explained():
  with pytest.raises(CheckpointError, match=r"/proc/nothing/here cannot be written.*--run-folder"):
    CheckpointStore("/proc/nothing/here")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_explained(tmp_path):
  tmp_path.chmod(0o500)
  with pytest.raises(CheckpointError, match="cannot be written"):
    CheckpointStore(tmp_path / "inner")


def test_unfinished_writes_of_a_killed_process_are_ignored(tmp_path):
  store = CheckpointStore(tmp_path)
  store.save(1, _state(1), {})
  store.save(2, _state(2), {})
  store.close()
  # What orbax leaves when it is killed before its final rename.
  (tmp_path / "2").rename(tmp_path / "2.orbax-checkpoint-tmp")
  store = CheckpointStore(tmp_path)
  restored = store.restore_latest(_abstract(_state(0)))
  assert restored is not None
  assert restored.step == 1
  store.save(3, _state(3), {})  # Orbax deletes in the background until the next save.
  store.close()
  assert not list(pathlib.Path(tmp_path).glob("*tmp*"))


@pytest.mark.parametrize(
  "change",
  [
    lambda meta: meta["key"].__setitem__(1, 5),  # one changed digit
    lambda meta: meta.pop("iterator"),
    lambda meta: meta.update(step=1),  # renamed
  ],
)
def test_a_checkpoint_whose_json_changed_is_passed_over(tmp_path, change):
  said = []
  store = CheckpointStore(tmp_path / "checkpoints", announce=said.append)
  arrays = {"a": jnp.ones(3)}
  for step in (1, 2):
    store.save(step, arrays, {"key": [0, step], "iterator": {"epoch": 0}})
  file = next(
    file
    for file in (tmp_path / "checkpoints" / "2" / "meta").rglob("*")
    if file.is_file() and b"meta_checksum" in file.read_bytes()
  )
  meta = json.loads(file.read_text())
  change(meta)
  file.write_text(json.dumps(meta))
  abstract = {"a": jax.ShapeDtypeStruct((3,), jnp.float32, sharding=arrays["a"].sharding)}
  found = store.restore_latest(abstract)
  assert found is not None
  assert found.step == 1
  assert "Checkpoint 2" in said[0]
  store.close()
