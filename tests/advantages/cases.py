"""Every registered rule with the arguments and inputs under which the shared tests run it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from tea_jax.advantages import available_advantages, make_advantage

# Every rule as it comes, and more settings of those whose arithmetic branches. A rule that needs
# other sizes or inputs to run at all says so here.
CASES = {name: (name, {}) for name in available_advantages()} | {
  "tea_signed": ("tea", {"positive_part": False, "tail_fraction": 0.5, "budget": 16}),
  "subset_tea": ("subset_tea", {"num_orders": 3}),
  "grpo_z": ("grpo", {"normalize": True}),
  "grpo_z_sample": ("grpo", {"normalize": True, "ddof": 1, "epsilon": 1e-4}),
  "max_at_k_plain": ("max_at_k", {"k": 2, "normalize": False}),
  "max_at_k_leave_one_out": ("max_at_k", {"k": 2, "normalize": False, "leave_one_out": True}),
  "bon_rl_baseline": ("bon_rl", {"coefficient": "n-1", "baseline": 0.25}),
  "cat_best_of_n_laplace": (
    "cat_best_of_n",
    {
      "quantile": "laplace",
      "normalize": False,
      "weight_clip": 5.0,
      "weight_normalization": "none",
      "silence_penalty": 0.5,
    },
  ),
  "cat_best_of_n_tracked": ("cat_best_of_n", {"quantile": "tracked"}),
  "cat_pass_at_n_group": ("cat_pass_at_n", {"probability": "group", "log_weighted": False}),
  "cat_majority": ("cat_majority", {"weight_normalization": "none"}),
  "cat_majority_log": (
    "cat_majority",
    {"threshold": 3, "log_weighted": True, "weight_normalization": "group"},
  ),
}
RANDOM = tuple(case for case, (name, _) in CASES.items() if "key" in make_advantage(name).needs)


# Compilation dominates these tests: rules are made once, and share one shape where they can.
SHAPE = (15, 19)


@functools.cache
def make(case: str, **overrides):
  name, arguments = CASES[case]
  return make_advantage(name, **{**arguments, **overrides})


def rows(named: dict, index) -> dict:
  """The inputs of some of the groups."""
  return {k: v[index] if k in ("logprobs", "answers", "quantiles") else v for k, v in named.items()}


def inputs(shape: tuple[int, ...], seed: int = 0) -> dict:
  """All named inputs of the rules, deterministic."""
  generator = np.random.default_rng(seed)
  return {
    "key": jax.random.key(seed),
    "logprobs": jnp.asarray(-generator.exponential(2.0, shape), jnp.float32),
    "answers": jnp.asarray(generator.integers(-1, 4, shape), jnp.int32),
    "quantiles": jnp.asarray(generator.random(shape), jnp.float32),
    "thresholds": jnp.asarray(3.0),
  }


def normal_rewards(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)
