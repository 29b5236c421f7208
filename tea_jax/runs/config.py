"""RunConfig: everything that decides a run, as flags, as YAML, and as frozen dataclasses.

One tree of frozen dataclasses is the flags (tyro), the `config.yaml` of a run folder and the
argument of `train`. Unknown keys are refused; combinations that cannot work are refused while the
config is built, before anything is loaded.
"""

from __future__ import annotations

import dataclasses
import pathlib
import reprlib
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

from tea_jax.advantages import AdvantageSpec, GroupRule
from tea_jax.runs.checks import check_fields, convert, require
from tea_jax.runs.flags import RULE_FLAG
from tea_jax.runs.groups import (
  CheckpointConfig,
  DataConfig,
  EvaluationConfig,
  LoggingConfig,
  MeshConfig,
  PolicyConfig,
  RolloutConfig,
  ValidationConfig,
)
from tea_jax.runs.objective import ObjectiveConfig
from tea_jax.runs.optimizer import OptimizerConfig
from tea_jax.runs.reward import RewardConfig
from tea_jax.runtime.extras import extra
from tea_jax.runtime.files import write_text

with extra("train", "a run's config"):
  import yaml

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class RunConfig:
  """A training run.

  Attributes:
    run_folder: where everything goes; running the same command again goes on from there.
    steps: updates of the policy on fresh rollouts.
    seed: root of all random keys.
    advantage: the rule; `--advantage.name tea --advantage.budget 128` sets it too.
  """

  run_folder: str = "runs/default"
  steps: int = 100
  seed: int = 0
  model: PolicyConfig = dataclasses.field(default_factory=PolicyConfig)
  data: DataConfig = dataclasses.field(default_factory=DataConfig)
  reward: RewardConfig = dataclasses.field(default_factory=RewardConfig)
  sampling: RolloutConfig = dataclasses.field(default_factory=RolloutConfig)
  advantage: Annotated[AdvantageSpec, RULE_FLAG] = dataclasses.field(default_factory=AdvantageSpec)
  objective: ObjectiveConfig = dataclasses.field(default_factory=ObjectiveConfig)
  optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
  checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
  validation: ValidationConfig = dataclasses.field(default_factory=ValidationConfig)
  evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
  mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
  logging: LoggingConfig = dataclasses.field(default_factory=LoggingConfig)

  def __post_init__(self) -> None:
    check_fields(self)
    require(bool(self.run_folder), "run_folder is empty; name a folder.")
    require(self.steps >= 1, f"steps={self.steps} must be at least 1.")
    require(0 <= self.seed < 2**32, f"seed={self.seed} must be in [0, 2^32).")
    rule = self.advantage_rule()
    try:
      rule.check_num_rollouts(self.sampling.num_rollouts)
    except ValueError as error:
      require(False, str(error))
    groups, rollouts = self.data.prompts_per_step, self.sampling.num_rollouts
    micro = self.optimizer.micro_batch_rollouts
    require(
      micro == 0
      or ((groups * rollouts) % micro == 0 and (micro % rollouts == 0 or rollouts % micro == 0)),
      f"optimizer.micro_batch_rollouts={micro} must divide num_rollouts={rollouts}, or be a "
      f"multiple of it that divides the step's {groups * rollouts} rollouts.",
    )
    clips = (self.objective.clip_epsilon_low, self.objective.clip_epsilon_high)
    require(
      self.optimizer.updates_per_batch > 1 or clips == (None, None),
      f"clip_epsilon_low={clips[0]}, clip_epsilon_high={clips[1]} have no effect with "
      "optimizer.updates_per_batch=1, where every ratio is 1; leave them at None.",
    )
    require(
      self.optimizer.updates_per_batch > 1 or self.objective.importance_ratio == "token",
      f'importance_ratio="{self.objective.importance_ratio}" has no effect with '
      'optimizer.updates_per_batch=1, where every ratio is 1; leave it at "token".',
    )

  def advantage_rule(self) -> GroupRule:
    """The resolved rule; `print` shows all its parameters."""
    return self.advantage.build()


# What may differ when a run goes on: none of it changes a number that the run has computed.
RESUMABLE = ("run_folder", "steps", "mesh", "logging", "checkpoint", "evaluation")
# But for this: the weights of the best validation are kept only if asked for from the start.
_FIXED = ("checkpoint.final_policy",)


def to_dict(config: Any) -> Any:
  """Nested plain dict of a config, without secrets of rewards; tuples become lists.

  Of a rule it has what was set.
  """
  if isinstance(config, AdvantageSpec):
    return {key: to_dict(value) for key, value in config.to_dict().items()}
  if isinstance(config, RewardConfig):
    config = config.public()
  if dataclasses.is_dataclass(config):
    return {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
  return [to_dict(x) for x in config] if isinstance(config, (tuple, list)) else config


def from_dict(kind: type[T], values: Mapping[str, Any], *, where: str = "config") -> T:
  """Builds a config dataclass from a nested dict.

  Raises:
    ValueError: for unknown keys (naming them and those that exist) and impossible values.
  """
  if not isinstance(values, Mapping):
    raise ValueError(f"{where} must hold keys and values, not {reprlib.repr(values)}.")
  if kind is AdvantageSpec:
    try:
      return typing.cast(T, AdvantageSpec.from_dict(_without_unset(values)))
    except (ValueError, TypeError, AttributeError) as error:
      raise ValueError(f"{where}: {error}") from error
  hints = typing.get_type_hints(kind)
  fields = [f.name for f in dataclasses.fields(typing.cast(Any, kind))]
  unknown = [key for key in values if key not in fields]
  if unknown:
    raise ValueError(
      f"{where} has unknown keys {', '.join(map(reprlib.repr, unknown))}; known: "
      f"{', '.join(fields)}."
    )
  arguments = {}
  for key, value in values.items():
    if hints[key] is AdvantageSpec and isinstance(value, str):
      try:
        value = AdvantageSpec.parse(value)
      except ValueError as error:
        raise ValueError(f"{where}.{key}: {error}") from error
    elif dataclasses.is_dataclass(hints[key]):
      inner = {} if value is None else value
      value = from_dict(typing.cast(type, hints[key]), inner, where=f"{where}.{key}")
    else:
      try:
        value = convert(value, hints[key], finite=False)
      except ValueError as error:
        raise ValueError(f"{where}: {key}={reprlib.repr(value)} {error}.") from None
    arguments[key] = value
  try:
    return kind(**arguments)
  except ValueError as error:
    text = str(error)
    raise ValueError(text if text.startswith(where) else f"{where}: {text}") from error


def _without_unset(advantage: Mapping[str, Any]) -> Mapping[str, Any]:
  # Run folders of version 0.1 list every argument of every rule, null where it was not set.
  if "options" not in advantage:
    return advantage
  return {k: v for k, v in advantage.items() if v is not None and k != "options"}


def save_config(config: Any, path: str | pathlib.Path) -> None:
  """Writes a config as YAML, whole or not at all; its rewards' secrets are left out."""
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  write_text(path, yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True))


def load_config(path: str | pathlib.Path) -> RunConfig:
  """Reads a YAML config; keys that are absent keep their defaults.

  Raises:
    ValueError: naming the file, for what is no YAML, keys that stand twice, aliases, unknown keys,
      and values that are impossible.
  """
  return read_config(RunConfig, path)


def read_config(kind: type[T], path: str | pathlib.Path) -> T:
  """Reads a YAML config of any kind; see `load_config`."""
  return from_dict(kind, _read_yaml(path) or {}, where=str(path))


def _read_yaml(path: str | pathlib.Path) -> Any:
  try:
    return yaml.load(pathlib.Path(path).read_bytes().decode("utf-8-sig"), Loader=_Loader)
  except UnicodeDecodeError as error:
    raise ValueError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}).") from error
  except RecursionError as error:
    raise ValueError(f"{path} is nested too deeply.") from error
  except yaml.YAMLError as error:
    mark = getattr(error, "problem_mark", None)
    place = f" (line {mark.line + 1})" if mark is not None else ""
    problem = getattr(error, "problem", None) or " ".join(str(error).split())
    raise ValueError(f"{path} is not usable YAML: {problem}{place}.") from error
  except ValueError as error:  # such as a date that does not exist
    raise ValueError(f"{path} is not usable YAML: {error}.") from error


class _Loader(yaml.SafeLoader):
  """YAML's plain values, without aliases (they may stand for gigabytes) and repeated keys."""

  def compose_node(self, parent: Any, index: Any) -> Any:
    if self.check_event(yaml.AliasEvent):
      mark = self.peek_event().start_mark
      raise yaml.MarkedYAMLError(problem="aliases (*name) are not read", problem_mark=mark)
    return super().compose_node(parent, index)

  def construct_mapping(self, node: Any, deep: bool = False) -> Any:
    seen = set()
    for key, _ in node.value:
      if key.value in seen if isinstance(key, yaml.ScalarNode) else False:
        raise yaml.MarkedYAMLError(
          problem=f"the key {key.value!r} stands twice", problem_mark=key.start_mark
        )
      seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
    return super().construct_mapping(node, deep=deep)


def load_groups(path: str | pathlib.Path, names: Sequence[str]) -> dict[str, Any]:
  """Some groups of a YAML config, those that are there, without the checks of the whole.

  Whoever judges a finished policy needs no rule: a user's file may be gone by then.
  """
  values = _read_yaml(path) or {}
  hints = typing.get_type_hints(RunConfig)
  if not isinstance(values, Mapping):
    raise ValueError(f"{path} must hold keys and values, not {reprlib.repr(values)}.")
  present = [name for name in names if name in values]
  return {
    name: from_dict(hints[name], values[name] or {}, where=f"{path}.{name}") for name in present
  }


def differences(first: Any, second: Any) -> list[str]:
  """`path: first -> second` of every field that differs."""
  found = []
  for field in dataclasses.fields(first):
    a, b = getattr(first, field.name), getattr(second, field.name)
    if isinstance(a, AdvantageSpec) and a != b:
      found.append(f"{field.name}: {a} -> {b}")
    elif dataclasses.is_dataclass(a) and not isinstance(a, AdvantageSpec):
      found += [f"{field.name}.{line}" for line in differences(a, b)]
    elif a != b:
      found.append(f"{field.name}: {a!r} -> {b!r}")
  return found


def check_resumable(stored: Any, given: Any) -> None:
  """Refuses to go on with a run under another config.

  Where a reward server is, and how it is asked, is not part of what a run is.

  Raises:
    ValueError: naming every field that differs and may not.
  """
  changed = [
    line
    for line in differences(*map(_identity, (stored, given)))
    if line.split(".")[0].split(":")[0] not in RESUMABLE or line.split(":")[0] in _FIXED
  ]
  if changed:
    raise ValueError(
      f"{given.run_folder} holds a run with another config ({'; '.join(changed)}); run the same "
      "command to go on, or choose another --run-folder."
    )


def _identity(config: Any) -> Any:
  if not isinstance(config, RunConfig):
    return config
  return dataclasses.replace(config, reward=config.reward.identity())
