"""The example of verl on a tiny model: its files, its config, its advantages."""

import dataclasses
import shlex

import numpy as np
import pytest

pytest.importorskip("verl.trainer.ppo.ray_trainer")
pytest.importorskip("vader")

import datasets
from verl.trainer.ppo.reward import get_custom_reward_fn

import tea_jax
from experiments.integrations import verl_openers
from experiments.integrations.openers import Flags, reward
from tests.integrations.tiny_folder import tiny_base

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def flags(tmp_path):
  base = tiny_base(tmp_path / "base")
  return Flags(output=str(tmp_path / "verl"), model=base, num_rollouts=8, max_completion_length=6)


def test_the_printed_command_is_a_config_that_verl_accepts(flags, capsys):
  verl_openers.main(flags)
  printed = capsys.readouterr().out.splitlines()
  assert any(line.startswith("verl's advantages are those of tea(") for line in printed)
  command = next(line for line in printed if "main_ppo" in line)
  config = verl_openers.composed(shlex.split(command)[3:])
  assert config.algorithm.tea == {"tail_fraction": 0.5}
  assert config.actor_rollout_ref.model.custom_chat_template == "{{ messages[0].content }}"
  rows = datasets.load_dataset("parquet", data_files=config.data.train_files, split="train")
  score = get_custom_reward_fn(config)
  text = rows[0]["prompt"][0]["content"]
  found = score(
    data_source="openers",
    solution_str=" a lovely day",
    ground_truth="",
    extra_info=rows[0]["extra_info"],
  )
  assert found == reward()([text], [" a lovely day"])[0] > 0


@pytest.mark.parametrize("rule", ["tea:tail_fraction=0.5", "tail_influence", "own"])
def test_verls_advantages_are_the_rules_in_the_order_of_the_groups(rule, flags):
  flags = dataclasses.replace(flags, rule=rule)
  files = {"train": "train.parquet", "test": "test.parquet"}
  algorithm = verl_openers.composed(verl_openers.settings(flags, files)).algorithm
  generator = np.random.default_rng(1)
  rewards = generator.normal(size=(3, 8)).astype(np.float32)
  lengths = generator.integers(1, 7, (3, 8))
  found = verl_openers.advantages(algorithm, rewards, lengths)
  expected = np.asarray((flags.make_rule() or tea_jax.grpo())(rewards))[..., None]
  within = np.arange(6) < lengths[..., None]
  np.testing.assert_allclose(found, expected * within, rtol=1e-5, atol=1e-5)
