"""What every test file shares: quick compilation, and programs that are dropped between files."""

import gc
import os

# Compilation is most of the time here; without LLVM's expensive passes it takes 0.6 times as long.
# CI runs the slow tests, whole runs among them, with this set to 0: as users compile.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import jax
import jaxtyping
import pytest
from jax.experimental.compilation_cache import compilation_cache

try:
  import hypothesis
except ModuleNotFoundError:
  pass  # a host's own environment, where only the tests of that host run
else:
  # Examples have no deadline, which a busy machine would miss, and are the same in every run.
  hypothesis.settings.register_profile(
    "tea_jax",
    deadline=None,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
  )
  hypothesis.settings.load_profile("tea_jax")

try:
  from tests.runtime_types import check_shapes
except ModuleNotFoundError:
  pass  # the same: no beartype
else:
  check_shapes()

CACHE_SETTINGS = (
  "jax_compilation_cache_dir",
  "jax_persistent_cache_min_compile_time_secs",
  "jax_persistent_cache_min_entry_size_bytes",
)


# Optional: a host's own environment has no pytest-xdist.
@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
  """Processes of `-n auto`: some for the whole suite (4 GiB each), none for a few files."""
  if config.args_source is not pytest.Config.ArgsSource.TESTPATHS:
    return 0
  gibibytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
  workers = min(os.cpu_count() or 1, int(gibibytes // 4), 8)
  return workers if workers > 1 else 0


@pytest.fixture(scope="session", autouse=True)
def compilation_cache_of_the_session(tmp_path_factory):
  """Files under test share compiled programs through a folder of the session.

  The scripts under test keep theirs there too, not in the home of whoever runs the tests.
  """
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("TEA_JAX_CACHE", str(tmp_path_factory.mktemp("scripts_cache")))
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("cache")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    yield


@pytest.fixture(scope="session", autouse=True)
def float32_products():
  """Accelerators multiply float32 in fewer bits unless told; the tests ask for all of them."""
  if jax.default_backend() != "cpu":
    jax.config.update("jax_default_matmul_precision", "highest")


@pytest.fixture
def unchecked(monkeypatch):
  """Wrong shapes reach the functions, as those of users do, and get an answer in words."""
  monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


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
