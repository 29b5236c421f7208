"""Rewards by name: built in, registered, imported."""

import numpy as np
import pytest

from tea_jax.rewards import (
  available_rewards,
  call_reward,
  load_object,
  make_reward,
  register_reward,
)


def test_reward_is_imported_by_module_or_file(tmp_path, monkeypatch):
  (tmp_path / "my_rewards.py").write_text(
    "def ones(prompts, completions):\n  return [1.0] * len(prompts)\nNUMBER = 3\n"
  )
  monkeypatch.chdir(tmp_path)
  for name in ("my_rewards:ones", "my_rewards.py:ones", f"{tmp_path}/my_rewards.py:ones"):
    np.testing.assert_array_equal(call_reward(make_reward(name), ["p"], ["c"]), [1.0])
  with pytest.raises(ValueError, match="no 'twos'"):
    load_object("my_rewards:twos")
  with pytest.raises(ValueError, match="not a function"):
    load_object("my_rewards:NUMBER")
  with pytest.raises(ValueError, match="takes no options"):
    make_reward("my_rewards:ones", scale=2)
  with pytest.raises(ValueError, match="cannot import"):
    load_object("no_such_module_anywhere:ones")


def test_unknown_reward_and_unknown_options_say_what_is_known():
  with pytest.raises(ValueError, match=r"unknown reward 'lexikon'.*lexicon"):
    make_reward("lexikon")
  with pytest.raises(ValueError, match=r"its options are \['minimum'"):
    make_reward("length", smallest=3)


def test_registered_reward_is_made_by_name():
  @register_reward("test_constant")
  def constant(value=2.0):
    return lambda prompts, completions: [value] * len(prompts)

  assert "test_constant" in available_rewards()
  np.testing.assert_array_equal(call_reward(make_reward("test_constant", value=5), ["p"], ["c"]), 5)
  with pytest.raises(ValueError, match="already registered"):
    register_reward("test_constant")(constant)
