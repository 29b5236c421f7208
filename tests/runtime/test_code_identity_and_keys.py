"""What a function does has a digest; a seed has one key."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

import tea_jax
from tea_jax.rewards import WeightedReward, make_reward
from tea_jax.runtime.code_identity import code_identity
from tea_jax.runtime.keys import make_key, threefry


def closing(bonus):
  def reward(prompts, completions):
    return [bonus for _ in completions]

  return reward


def counting():
  calls, number = [], 0

  def reward(prompts, completions):
    nonlocal number
    calls.append(1)
    number += 1
    return [0.0 for _ in completions]

  return reward


@dataclasses.dataclass
class Judge:
  threshold: float = 0.5
  calls: int = 0

  def __call__(self, prompts, completions):
    self.calls += 1
    return [float(len(c) > self.threshold) for c in completions]


def test_code_and_settings_decide_and_counters_do_not():
  same = [
    (closing(1.0), closing(1.0)),
    (Judge(), Judge(calls=3)),
    (make_reward("regex", pattern="a"), make_reward("regex", pattern="a")),
    (tea_jax.tea(budget=64), tea_jax.tea(budget=64)),
    (lambda p, c: [1.0], lambda p, c: [1.0]),
  ]
  other = [
    (closing(1.0), closing(2.0)),
    (Judge(), Judge(threshold=0.6)),
    (make_reward("regex", pattern="a"), make_reward("regex", pattern="b")),
    (tea_jax.tea(budget=64), tea_jax.tea(budget=128)),
    (tea_jax.grpo(), tea_jax.rloo()),
    (lambda p, c: [1.0], lambda p, c: [2.0]),
    (functools.partial(closing, 1.0), functools.partial(closing, 2.0)),
    (WeightedReward({"a": (closing(1.0), 1.0)}), WeightedReward({"a": (closing(1.0), 2.0)})),
  ]
  for first, second in same:
    assert code_identity(first) == code_identity(second)
  for first, second in other:
    assert code_identity(first) != code_identity(second)


def test_a_functions_own_counters_do_not_change_its_identity():
  reward = counting()
  before = code_identity(reward)
  reward([], ["a"])
  assert code_identity(reward) == before


def test_a_changed_helper_changes_the_identity(tmp_path):
  file = tmp_path / "with_helper_function.py"
  source = (
    "def help(c): return {}\ndef f(prompts, completions): return [help(c) for c in completions]\n"
  )
  digests = set()
  for value in (1.0, 2.0, 1.0):
    file.write_text(source.format(value))
    digests.add(code_identity(make_reward(f"{file}:f")))
  assert len(digests) == 2


def test_keys_are_threefry_whatever_the_default():
  data = np.asarray(jax.random.key_data(make_key(7)))
  with jax.default_prng_impl("rbg"):
    np.testing.assert_array_equal(np.asarray(jax.random.key_data(make_key(7))), data)
    other = threefry(jax.random.key(7))
    assert str(jax.random.key_impl(other)) == "threefry2x32"
  for seed in (-1, 2**32, 2**32 + 7, 1.0, True):
    with pytest.raises(ValueError, match="seed="):
      make_key(seed)
