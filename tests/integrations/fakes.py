"""Hosts of a screen: the calls that Tunix, TRL and verl make of us, without torch."""

from __future__ import annotations

import collections
import sys
import types
from typing import Any

import numpy as np


class FakeTensor:
  """The few methods of a torch tensor that the adapters use."""

  def __init__(self, values: Any):
    self.values = np.asarray(values)

  def __len__(self):
    return len(self.values)

  def __getitem__(self, index):
    return FakeTensor(self.values[index])

  def __mul__(self, other):
    return FakeTensor(self.values * other.values)

  def sum(self, axis):
    return FakeTensor(self.values.sum(axis))

  def new_tensor(self, values):
    return FakeTensor(np.asarray(values, self.values.dtype))

  def numpy(self):
    return self.values

  def detach(self):
    return self

  float = double = cpu = detach


class FakeGRPOTrainer:
  """One process of a TRL trainer: gathered rewards, its own slice of the advantages, its logs.

  Args:
    args: the config.
    rewards: `[processes * rows, functions]` that `_calculate_rewards` gathers at each call.
    process_index, num_processes: of this process.
  """

  num_generations = 4
  num_generations_eval = 2
  multi_objective_aggregation = "sum_then_normalize"

  def __init__(self, args, rewards, *, process_index=0, num_processes=1, weights=None):
    self.args, self._rewards = args, np.asarray(rewards, np.float32)
    self._num_processes = num_processes
    ones = np.ones(self._rewards.shape[1], np.float32)
    self.reward_weights = FakeTensor(ones if weights is None else np.asarray(weights, np.float32))
    self.accelerator = types.SimpleNamespace(process_index=process_index)
    self.model = types.SimpleNamespace(training=True)
    self.state = types.SimpleNamespace(global_step=0)
    self._step = 0
    self._logs = {"advantages": collections.deque(maxlen=16)}
    self._metrics = {mode: collections.defaultdict(list) for mode in ("train", "eval")}

  def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
    return FakeTensor(self._rewards)

  def _generate_and_score_completions(self, inputs):
    gathered = self._calculate_rewards(inputs, [], [], [])
    own = np.full(len(gathered) // self._num_processes, 99.0, np.float32)
    self._logs["advantages"].extend([99.0] * len(gathered))
    return {"advantages": FakeTensor(own), "completion_ids": "kept"}


def grpo_args(**changes):
  """A config of TRL under which the update is a trajectory policy gradient, with changes."""
  trajectory = {
    "loss_type": "dr_grpo",
    "top_p": 1.0,
    "top_k": 0,
    "min_p": None,
    "top_entropy_quantile": 1.0,
    "mask_truncated_completions": False,
    "gradient_accumulation_steps": 2,
  }
  return types.SimpleNamespace(**{**trajectory, **changes})


def fake_tunix(monkeypatch) -> dict[str, Any]:
  """Puts `tunix.rl.function_registry` into `sys.modules`; returns its advantage estimators."""
  registry: dict[str, Any] = {}

  def register_advantage_estimator(name):
    return lambda function: registry.setdefault(name, function)

  _module(monkeypatch, "tunix")
  rl = _module(monkeypatch, "tunix.rl")
  rl.function_registry = _module(  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch,
    "tunix.rl.function_registry",
    register_advantage_estimator=register_advantage_estimator,
  )
  return registry


def fake_verl(monkeypatch) -> dict[str, Any]:
  """Puts `verl.trainer.ppo.core_algos` into `sys.modules`; returns its registry."""
  registry: dict[str, Any] = {"grpo": None, "rloo": None}

  def register_adv_est(name):
    def register(function):
      if name in registry and registry[name] != function:
        raise ValueError(f"Adv estimator {name} has already been registered")
      return registry.setdefault(name, function)

    return register

  for name in ("verl", "verl.trainer", "verl.trainer.ppo"):
    _module(monkeypatch, name)
  _module(
    monkeypatch,
    "verl.trainer.ppo.core_algos",
    register_adv_est=register_adv_est,
    ADV_ESTIMATOR_REGISTRY=registry,
  )
  return registry


def _module(monkeypatch, name: str, **attributes: Any) -> types.ModuleType:
  module = types.ModuleType(name)
  vars(module).update(attributes)
  monkeypatch.setitem(sys.modules, name, module)
  return module
