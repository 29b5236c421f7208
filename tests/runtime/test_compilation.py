import os
import subprocess
import sys

import jax
import pytest

from tea_jax.runtime.compilation import enable_compilation_cache, host_fingerprint


@pytest.fixture
def settings_restored():
  names = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
  )
  before = {name: getattr(jax.config, name) for name in names}
  yield
  for name, value in before.items():
    jax.config.update(name, value)


def test_cache_folder_is_private_and_split_by_processor(tmp_path, settings_restored):
  folder = enable_compilation_cache(tmp_path)
  assert folder == tmp_path / f"xla-{host_fingerprint()}"
  assert folder.stat().st_mode & 0o777 == 0o700
  assert jax.config.jax_compilation_cache_dir == str(folder)


def test_environment_chooses_the_root(tmp_path, settings_restored, monkeypatch):
  monkeypatch.setenv("TEA_JAX_CACHE", str(tmp_path / "elsewhere"))
  assert enable_compilation_cache().parent == tmp_path / "elsewhere"


def test_fingerprint_depends_on_the_processor(monkeypatch):
  before = host_fingerprint()
  assert before == host_fingerprint()
  monkeypatch.setattr("platform.machine", lambda: "another")
  assert host_fingerprint() != before


@pytest.mark.slow
def test_second_process_compiles_nothing(tmp_path):
  code = (
    "import jax, sys, jax.numpy as jnp\n"
    "from tea_jax.runtime.compilation import enable_compilation_cache\n"
    "enable_compilation_cache(sys.argv[1])\n"
    "jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)\n"
    "hits = []\n"
    "jax.monitoring.register_event_listener(lambda name, **_: hits.append(name))\n"
    "jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((8, 8))).block_until_ready()\n"
    "print(sum(name.endswith('cache_hits') for name in hits),"
    " sum(name.endswith('cache_misses') for name in hits))\n"
  )
  outputs = []
  for _ in range(2):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", code, str(tmp_path)]
    outputs.append(subprocess.check_output(command, env=environment, text=True).split())
  assert outputs[0][0] == "0"
  assert int(outputs[0][1]) > 0
  assert int(outputs[1][0]) > 0
  assert outputs[1][1] == "0"
