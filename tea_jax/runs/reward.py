"""The reward of a run: its flags, what decides its scores, and the function that they make."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import jax

from tea_jax.rewards import RewardFunction, WeightedReward, make_reward
from tea_jax.rewards.calibration import CalibratedReward, read_base_rewards
from tea_jax.rewards.verifiers import compile_pattern
from tea_jax.runs.checks import check_fields, require
from tea_jax.runtime.secrets import public_text, public_values

# Options of rewards that say how a score is asked for, not what it is.
_ASKING = (
  *("timeout", "attempts", "first_pause", "longest_pause", "concurrency", "batch_size"),
  *("headers", "num_workers"),
)


@dataclasses.dataclass(frozen=True)
class RewardConfig:
  """The reward: a weighted sum of functions.

  Attributes:
    functions: names of built-in rewards, own ones as "module:function", or the Hugging Face id or
      folder of a reward model.
    weights: one a function; empty for all 1.
    options: JSON object of factory arguments by function, e.g. '{"regex": {"pattern": "42"}}'.
    calibrate: file of the base policy's rewards (`experiments.calibrate` writes it): a completion's
      reward is then the normal quantile of the share of them, for its prompt, that are lower.
    answer_pattern: regular expression of the answer that votes (cat_majority, maj@k): the first
      group of its last match, e.g. '#### (.+)'; empty for \\boxed{...}.
  """

  functions: tuple[str, ...] = ("lexicon",)
  weights: tuple[float, ...] = ()
  options: str = "{}"
  calibrate: str = ""
  answer_pattern: str = ""

  def __post_init__(self) -> None:
    check_fields(self, "reward")
    compile_pattern(self.answer_pattern)
    require(len(self.functions) > 0, "reward.functions is empty; name at least one reward.")
    try:
      options = json.loads(self.options)
    except (ValueError, RecursionError) as error:
      raise ValueError(f"reward.options is not JSON: {error}.") from error
    repeated = sorted({name for name in self.functions if self.functions.count(name) > 1})
    require(
      not repeated,
      f"reward.functions names {', '.join(repeated)} more than once, and its weights and options "
      "go by name; add the weights up, or give it a second name in a file of yours.",
    )
    wrong = not isinstance(options, dict) or not all(isinstance(v, dict) for v in options.values())
    require(not wrong, "reward.options must be a JSON object of objects: arguments by function.")
    unknown = sorted(set(options) - set(self.functions))
    require(not unknown, f"reward.options names {unknown}, which are not in reward.functions.")
    require(
      len(self.weights) in (0, len(self.functions)),
      f"reward.weights has {len(self.weights)} entries for {len(self.functions)} functions; give "
      "one each, or none for all 1.",
    )

  def build(self, mesh: jax.sharding.Mesh | None = None) -> RewardFunction:
    """The weighted sum of the functions; its name in records is that of `identity`.

    Args:
      mesh: that reward models are spread over; None for one device.
    """
    options: dict[str, Any] = json.loads(self.options)
    weights = self.weights or (1.0,) * len(self.functions)
    reward = WeightedReward(
      {
        public_text(name): (_make_reward(name, options.get(name, {}), mesh), weight)
        for name, weight in zip(self.functions, weights)
      }
    )
    # Records tell rewards apart by name; where a server is does not make another reward.
    same = self.identity()
    reward.name = " + ".join(f"{weight:g} {name}" for name, weight in zip(same.functions, weights))
    if same.options != "{}":
      reward.name += f" {json.dumps(public_values(json.loads(same.options)), sort_keys=True)}"
    if self.calibrate:
      return CalibratedReward(reward, read_base_rewards(self.calibrate))
    return reward

  def public(self) -> RewardConfig:
    """The same without passwords, tokens and headers, for files and terminals."""
    options = json.loads(self.options)
    hidden = public_values(options)
    functions = tuple(map(public_text, self.functions))
    if hidden == options and functions == self.functions:
      return self
    return dataclasses.replace(self, functions=functions, options=json.dumps(hidden))

  def identity(self) -> RewardConfig:
    """What decides the scores: not where a server is, nor how it is asked."""
    names = {name: _server(name, index) for index, name in enumerate(self.functions)}
    options = {
      names[name]: {
        key: value
        for key, value in arguments.items()
        if key not in _ASKING and not (key == "url" and name == "remote")
      }
      for name, arguments in json.loads(self.options).items()
    }
    options = {name: arguments for name, arguments in sorted(options.items()) if arguments}
    return dataclasses.replace(
      self, functions=tuple(names.values()), options=json.dumps(options, sort_keys=True)
    )


def is_model(name: str) -> bool:
  """Whether a reward is named by a reward model's folder or hub id: neither code nor an address."""
  return "/" in name and ":" not in name


def _make_reward(
  name: str, options: Mapping[str, Any], mesh: jax.sharding.Mesh | None
) -> RewardFunction:
  if is_model(name):
    return make_reward("model", name_or_path=name, mesh=mesh, **options)
  return make_reward(name, **options)


def _server(name: str, index: int) -> str:
  return f"remote server {index + 1}" if name.startswith(("http://", "https://")) else name
