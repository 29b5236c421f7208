"""What every test file shares: compiled programs are dropped between files."""

import gc

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

CACHE_SETTINGS = (
  "jax_compilation_cache_dir",
  "jax_persistent_cache_min_compile_time_secs",
  "jax_persistent_cache_min_entry_size_bytes",
)


@pytest.fixture(scope="session", autouse=True)
def compilation_cache_of_the_session(tmp_path_factory):
  """The scripts under test keep their programs here, not in the home of whoever runs the tests."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("TEA_JAX_CACHE", str(tmp_path_factory.mktemp("compilation_cache")))
    yield


@pytest.fixture(scope="session", autouse=True)
def float32_products():
  """Accelerators multiply float32 in fewer bits unless told; the tests ask for all of them."""
  if jax.default_backend() != "cpu":
    jax.config.update("jax_default_matmul_precision", "highest")


@pytest.fixture
def float64():
  """Arrays and arithmetic in float64, for sums that are exact."""
  with jax.enable_x64(True):
    yield


@pytest.fixture(scope="module", autouse=True)
def programs_dropped():
  """Frees what a file compiled, and undoes the settings of a script that it ran in this process.

  Each program on the CPU holds memory maps, and the kernel allows a process 65530 of them: the
  suite in one process dies of a segmentation fault without this.
  """
  before = {name: getattr(jax.config, name) for name in CACHE_SETTINGS}
  yield
  if any(getattr(jax.config, name) != value for name, value in before.items()):
    for name, value in before.items():
      jax.config.update(name, value)
    compilation_cache.reset_cache()
  jax.clear_caches()
  gc.collect()
