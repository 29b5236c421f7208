"""Rewards by the names that flags use: built in, registered, or imported from the user's code."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from tea_jax.rewards.base import RewardFunction
from tea_jax.runtime.user_code import explain, load_object

# Built-in rewards by the name that flags use; modules are imported only when asked for, because
# they need optional packages.
_BUILT_IN: dict[str, str] = {
  "lexicon": "tea_jax.rewards.lexicon:LexiconReward",
  "boxed_math": "tea_jax.rewards.verifiers:BoxedMathReward",
  "regex": "tea_jax.rewards.verifiers:regex_reward",
  "json_schema": "tea_jax.rewards.json_schema:json_schema_reward",
  "length": "tea_jax.rewards.verifiers:length_reward",
  "reasoning_gym": "tea_jax.rewards.reasoning_gym:ReasoningGymReward",
  "hydrophobic_valley": "tea_jax.rewards.proteins:HydrophobicValley",
  "hydrophobic_complement": "tea_jax.rewards.proteins:HydrophobicComplement",
  "model": "tea_jax.rewards.model:load_model_reward",
  "remote": "tea_jax.rewards.remote:RemoteReward",
}
_REGISTERED: dict[str, Callable[..., RewardFunction]] = {}


def register_reward(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
  """Decorator: makes a factory `(**options) -> RewardFunction` known to `make_reward` by name."""

  def register(factory: Callable[..., Any]) -> Callable[..., Any]:
    if name in available_rewards():
      raise ValueError(f"a reward named '{name}' is already registered; choose another name")
    _REGISTERED[name] = factory
    return factory

  return register


def available_rewards() -> list[str]:
  """Names that `make_reward` knows, sorted."""
  return sorted({**_BUILT_IN, **_REGISTERED})


def make_reward(name: str, **options: Any) -> RewardFunction:
  """Builds a reward from a flag.

  Args:
    name: one of `available_rewards()`; the URL of a scoring server; or where to import a reward
      function from, `module:function` or `file.py:function`. A class there is instantiated with
      the options; a function is used as it is and takes none.
    **options: of the reward's factory.

  Raises:
    ValueError: unknown name, module or function, or options that the reward does not have.
  """
  if name in _REGISTERED:
    return _build(name, _REGISTERED[name], options)
  if name in _BUILT_IN:
    return _build(name, load_object(_BUILT_IN[name]), options)
  if name.startswith(("http://", "https://")):
    return make_reward("remote", url=name, **options)
  if name.endswith(".py"):
    raise ValueError(f"'{name}' is a file; name the function in it, as {name}:function")
  if ":" not in name:
    raise ValueError(
      f"unknown reward '{name}'; use one of {', '.join(available_rewards())}, "
      "your own as module:function or file.py:function, or the URL of a scoring server"
    )
  reward = load_object(name)
  if inspect.isclass(reward):
    return _build(name, reward, options)
  if options:
    raise ValueError(
      f"reward '{name}' is a function and takes no options, but got {sorted(options)}"
    )
  return reward


def _build(name: str, factory: Callable[..., Any], options: Mapping[str, Any]) -> RewardFunction:
  try:
    inspect.signature(factory).bind(**options)
  except TypeError as error:
    known = [p for p in inspect.signature(factory).parameters if p != "self"]
    raise ValueError(
      f"reward '{name}' was given {sorted(options)}: {error}; its options are {known}"
    ) from error
  try:
    return factory(**options)
  except (ValueError, ImportError, OSError):
    raise  # these say what is wrong themselves
  except (Exception, SystemExit) as error:
    raise ValueError(f"reward '{name}' cannot be made: {explain(error)}") from error
