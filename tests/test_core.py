"""What `pip install tea-jax` alone must be enough for, beside any trainer."""

import importlib.metadata
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
CORE = ("jax", "numpy", "scipy", "chex", "jaxtyping")
IMPORTED = (
  "tea_jax",
  "tea_jax.tail",
  "tea_jax.strategies",
  "tea_jax.advantages",
  "tea_jax.scaling",
  "tea_jax.integrations.trl",
  "tea_jax.integrations.tunix",
  "tea_jax.integrations.verl",
)


def closure(distributions) -> set[str]:
  """Distributions and all that they require, normalised names."""
  found, waiting = set(), [*distributions]
  while waiting:
    name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
    if name in found:
      continue
    try:
      required = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
      continue  # a requirement of another platform
    found.add(name)
    waiting += [re.split(r"[^\w.-]", r)[0] for r in required if "extra ==" not in r]
  return found


def run_without(modules, code: str) -> str:
  """What a fresh interpreter prints in which `modules` are as if not installed."""
  block = f"import sys; sys.modules.update(dict.fromkeys({sorted(modules)!r}))\n"
  done = subprocess.run(
    [sys.executable, "-c", block + code], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  return done.stdout.strip()


@pytest.fixture(scope="module")
def beyond_the_core() -> set[str]:
  """Top-level modules of every installed package that the core does not need."""
  allowed = closure(CORE) | {"tea-jax"}
  return {
    module
    for module, owners in importlib.metadata.packages_distributions().items()
    if not {re.sub(r"[-_.]+", "-", owner).lower() for owner in owners} & allowed
  } - {"tests", "tea_jax"}


def test_every_rule_runs_with_nothing_but_the_core(beyond_the_core):
  assert {"flax", "optax", "orbax", "transformers", "yaml", "rich", "pytest"} <= beyond_the_core
  code = f"""
import importlib
for module in {IMPORTED!r}:
  importlib.import_module(module)
import numpy as np, tea_jax
from tests.advantages import cases
named = cases.inputs((2, 19))
rewards = cases.normal_rewards((2, 19))
for name in tea_jax.available_advantages():
  rule = tea_jax.make_advantage(name)
  given = {{n: named[n] for n in (*rule.needs, *rule.accepts)}}
  assert np.isfinite(np.asarray(rule(rewards, **given))).all(), name
print(len(tea_jax.available_advantages()))
"""
  assert int(run_without(beyond_the_core, code)) >= 15


def test_edge_without_its_extra_says_so_in_one_sentence():
  code = "try:\n  import tea_jax.evaluation.records\nexcept ImportError as error: print(error)"
  assert run_without(["tyro", "pyarrow"], code) == (
    'storing completions needs pyarrow, which is not installed: pip install "tea-jax[train]".'
  )


def test_policies_and_rollouts_need_no_extra():
  code = "import tea_jax; tea_jax.RolloutEngine, tea_jax.load_policy, tea_jax.load_adapters"
  run_without(["tyro", "pyarrow"], code)
