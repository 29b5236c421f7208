"""The files to copy do what they say."""

import pathlib
import threading

import numpy as np
import pytest

import experiments
import tea_jax
from tea_jax.data import recipes
from tea_jax.rewards import call_reward, make_reward
from tea_jax.rewards.base import RewardContext
from tea_jax.runs.config import load_config

FOLDER = pathlib.Path(experiments.__file__).parent / "examples"


def test_rewards_of_ones_own_score():
  short = make_reward(f"{FOLDER}/own_reward.py:short_and_polite")
  np.testing.assert_allclose(call_reward(short, ["p"] * 2, ["Please!", "no"]), [0.93, -0.02])
  named = make_reward(f"{FOLDER}/own_reward.py:names_the_answer")
  scores = call_reward(named, ["p"] * 3, ["42", "41", ""], {"answer": [42, "42", None]})
  np.testing.assert_array_equal(scores, [1.0, 0.0, np.nan])
  counted = make_reward(f"{FOLDER}/own_reward.py:Counted", word="moon")
  context = RewardContext()
  scores = call_reward(counted, ["p"] * 2, ["Moon, moon", "sun"], context=context)
  np.testing.assert_array_equal(scores, [2.0, 0.0])
  assert context.metrics == {"counted/share": 0.5}


def test_a_rule_of_ones_own_leaves_out_what_was_not_scored():
  rule = tea_jax.make_advantage(f"{FOLDER}/own_rule.py:signed", margin=0.5)
  rewards = np.array([0.0, 1.0, 5.0, 99.0], np.float32)
  np.testing.assert_array_equal(rule(rewards[:3]), [-1.0, -1.0, 1.0])
  scored = np.array([True, True, True, False])
  np.testing.assert_array_equal(rule(rewards, where=scored), [-1.0, -1.0, 1.0, 0.0])


def test_the_config_of_gsm8k_can_run():
  config = load_config(FOLDER / "gsm8k.yaml")
  assert config.data.prompts in recipes.RECIPES
  assert config.advantage_rule().name == "cat_pass_at_n"


def test_the_server_scores_what_it_is_sent():
  pytest.importorskip("httpx")
  pytest.importorskip("tenacity")
  from experiments.examples import reward_server

  with reward_server.server() as server:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    reward = make_reward(f"http://127.0.0.1:{server.server_port}/")
    scores = call_reward(reward, ["p"] * 3, ["a b a", "", "one two three"])
    server.shutdown()
    thread.join()
  np.testing.assert_array_equal(scores, [2.0, np.nan, 3.0])
