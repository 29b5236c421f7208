"""Calibrated rewards: the base becomes standard normal, order and ties stay."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.special import ndtri

from tea_jax.rewards import call_reward
from tea_jax.rewards.calibration import CalibratedReward, read_base_rewards


def numbers(prompts, completions):
  return [None if text == "none" else float(text) for text in completions]


def test_base_completions_become_normal_quantiles_of_their_ranks():
  values = np.random.default_rng(0).exponential(size=99)
  reward = CalibratedReward(numbers, {"p": values.tolist()})
  scores = call_reward(reward, ["p"] * 99, [str(value) for value in values])
  ranks = values.argsort().argsort() + 1
  np.testing.assert_allclose(scores, ndtri(ranks / 100))
  assert scores.mean() == pytest.approx(0.0, abs=1e-9)
  assert scores.std() == pytest.approx(1.0, abs=0.05)


def test_each_prompt_has_its_own_scale():
  reward = CalibratedReward(numbers, {"a": [0.0, 1.0, 2.0], "b": [0.0, 100.0, 200.0]})
  scores = call_reward(reward, ["a", "b"], ["1.0", "100.0"])
  np.testing.assert_allclose(scores, [0.0, 0.0], atol=1e-12)


def test_ties_and_what_lies_beyond_the_base():
  reward = CalibratedReward(numbers, {"p": [1.0, 1.0, 1.0, 5.0]})
  tied, above, below = call_reward(reward, ["p"] * 3, ["1.0", "9.0", "-9.0"])
  assert tied == pytest.approx(ndtri(2 / 5))
  assert above == pytest.approx(ndtri(4.5 / 5))
  assert below == pytest.approx(ndtri(0.5 / 5))


def test_not_scored_stays_not_scored():
  reward = CalibratedReward(numbers, {"p": [1.0, 2.0]})
  assert np.isnan(call_reward(reward, ["p"], ["none"])).all()


def test_a_prompt_without_base_rewards_is_named():
  reward = CalibratedReward(numbers, {"p": [1.0, 2.0]})
  with pytest.raises(ValueError, match="no base rewards of prompt 'other'"):
    call_reward(reward, ["other"], ["1.0"])
  with pytest.raises(ValueError, match="two or more finite numbers"):
    CalibratedReward(numbers, {"p": [1.0, float("nan")]})


def test_files_are_read_and_bad_lines_named(tmp_path):
  path = tmp_path / "base.jsonl"
  path.write_text(json.dumps({"prompt": "p", "rewards": [1, 2.5]}) + "\n")
  assert read_base_rewards(path) == {"p": [1.0, 2.5]}
  path.write_text('{"prompt": "p", "rewards": [1, 2]}\n{"prompt": "q"}\n')
  with pytest.raises(ValueError, match="line 2 is not"):
    read_base_rewards(path)
