"""verl's own registry and `compute_advantage` with our rules: shuffled, ragged groups."""

import importlib.metadata
import os
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("verl.trainer.ppo.core_algos")

import omegaconf
import torch
from verl import DataProto
from verl.trainer.ppo import core_algos

import tea_jax
from tea_jax.integrations import verl

pytestmark = pytest.mark.filterwarnings("ignore:tea_jax in verl")
SIZES = (8, 5, 8, 1, 6)
TEA = tea_jax.tea(tail_fraction=0.5, budget=64)


def algorithm(**settings):
  """verl's `algorithm` config with the lines that a user adds on the command line."""
  return omegaconf.OmegaConf.create({"adv_estimator": "tea", "gamma": 1.0, "lam": 1.0, **settings})


def batch(seed=0, sizes=SIZES, length=7):
  """Rows of shuffled groups: rewards at the last token of each response."""
  generator = np.random.default_rng(seed)
  uid = np.repeat([f"prompt {i}" for i in range(len(sizes))], sizes).astype(object)
  uid = uid[generator.permutation(len(uid))]
  lengths = generator.integers(1, length + 1, len(uid))
  mask = torch.as_tensor(np.arange(length) < lengths[:, None]).float()
  rewards = torch.zeros(len(uid), length)
  rewards[torch.arange(len(uid)), torch.as_tensor(lengths) - 1] = torch.as_tensor(
    generator.normal(size=len(uid)).astype(np.float32)
  )
  return DataProto.from_dict(
    tensors={"token_level_rewards": rewards, "response_mask": mask}, non_tensors={"uid": uid}
  )


def expected_of_equal_groups(rule, data):
  """Advantages of rows whose groups are all of one size, from the rule itself."""
  rewards = data.batch["token_level_rewards"].sum(-1).numpy()
  uid = data.non_tensor_batch["uid"]
  rows = np.stack([np.flatnonzero(uid == name) for name in dict.fromkeys(uid)])
  advantages = np.zeros(len(uid), np.float32)
  advantages[rows] = np.asarray(rule(rewards[rows]))
  return torch.as_tensor(advantages)[:, None] * data.batch["response_mask"]


def test_shuffled_groups_get_the_advantages_of_the_rule_bit_for_bit():
  data = batch(sizes=(8, 8, 8, 8))
  estimator = core_algos.get_adv_estimator_fn("tea")
  advantages, returns = estimator(
    token_level_rewards=data.batch["token_level_rewards"],
    response_mask=data.batch["response_mask"],
    config=algorithm(tea={"budget": 64, "tail_fraction": 0.5}),
    index=data.non_tensor_batch["uid"],
  )
  expected = expected_of_equal_groups(TEA, data)
  assert torch.equal(advantages, expected)
  assert torch.equal(returns, expected)
  assert advantages.abs().max() > 0


def test_ragged_groups_in_verls_compute_advantage():
  ray_trainer = pytest.importorskip("verl.trainer.ppo.ray_trainer")
  data = batch()
  config = algorithm(tea={"budget": 64, "tail_fraction": 0.5})
  data = ray_trainer.compute_advantage(data, adv_estimator="tea", config=config)
  uid = data.non_tensor_batch["uid"]
  rewards = data.batch["token_level_rewards"].sum(-1).numpy()
  for name in set(uid):
    members = np.flatnonzero(uid == name)
    expected = np.asarray(TEA(rewards[members]))[:, None]
    mask = data.batch["response_mask"][members].numpy()
    np.testing.assert_allclose(
      data.batch["advantages"][members].numpy(), expected * mask, rtol=1e-5, atol=1e-6
    )


def test_our_grpo_is_verls():
  data = batch(sizes=(8, 8, 6, 2))
  arguments = {
    "token_level_rewards": data.batch["token_level_rewards"],
    "response_mask": data.batch["response_mask"],
    "index": data.non_tensor_batch["uid"],
  }
  setting = {"rule": "grpo", "normalize": True, "ddof": 1, "epsilon": 1e-6}
  ours, _ = core_algos.get_adv_estimator_fn("tea_jax")(
    **arguments, config=algorithm(tea_jax=setting)
  )
  theirs, _ = core_algos.get_adv_estimator_fn("grpo")(**arguments)
  torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_lists_of_the_config_reach_the_rule():
  data = batch(sizes=(16, 16))
  setting = {"tail_fraction": 0.5, "fractions": [0.5, 1.0], "order": 1, "seed": 3}
  call = {
    "token_level_rewards": data.batch["token_level_rewards"],
    "response_mask": data.batch["response_mask"],
    "index": data.non_tensor_batch["uid"],
    "config": algorithm(prefix_tea=setting),
  }
  first, second = (verl.RuleEstimator("prefix_tea")(**call)[0] for _ in range(2))
  assert torch.equal(first, second)
  assert torch.isfinite(first).all()
  assert first.abs().max() > 0


def test_verl_finds_the_plugin_by_itself():
  environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
  installed = importlib.metadata.entry_points(group="verl.plugins")
  if not any(entry.value == "tea_jax.integrations.verl" for entry in installed):
    environment["VERL_USE_EXTERNAL_MODULES"] = "tea_jax.integrations.verl"
  run = subprocess.run(
    [sys.executable, "-m", "tea_jax.integrations.verl"],
    env=environment,
    capture_output=True,
    text=True,
    check=True,
  )
  assert "algorithm.adv_estimator=tea: " in run.stdout
