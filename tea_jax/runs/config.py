"""RunConfig: everything that decides a run, as flags, as YAML, and as frozen dataclasses.

One tree of frozen dataclasses is the flags (tyro), the `config.yaml` of a run folder and the
argument of `train`. Unknown keys are refused; combinations that cannot work are refused while the
config is built, before anything is loaded.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

from tea_jax.advantages import AdvantageSpec, GroupRule
from tea_jax.runs.checks import require
from tea_jax.runs.flags import RULE_FLAG
from tea_jax.runs.groups import (
  CheckpointConfig,
  DataConfig,
  EvaluationConfig,
  LoggingConfig,
  MeshConfig,
  PolicyConfig,
  RewardConfig,
  RolloutConfig,
  ValidationConfig,
)
from tea_jax.runs.objective import ObjectiveConfig
from tea_jax.runs.optimizer import OptimizerConfig
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
    require(self.steps >= 1, f"steps={self.steps} must be at least 1.")
    require(0 <= self.seed < 2**32, f"seed={self.seed} must be in [0, 2^32).")
    self.advantage_rule().check_num_rollouts(self.sampling.num_rollouts)
    groups, rollouts = self.data.prompts_per_step, self.sampling.num_rollouts
    micro = self.optimizer.micro_batch_rollouts
    require(
      micro == 0
      or ((groups * rollouts) % micro == 0 and (micro % rollouts == 0 or rollouts % micro == 0)),
      f"optimizer.micro_batch_rollouts={micro} must divide num_rollouts={rollouts}, or be a "
      f"multiple of it that divides the step's {groups * rollouts} rollouts.",
    )
    require(
      self.optimizer.warmup_steps < self.steps or self.optimizer.warmup_steps == 0,
      f"optimizer.warmup_steps={self.optimizer.warmup_steps} must be below steps={self.steps}.",
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


# What may differ when a run goes on: none of it changes a number that the run computes.
RESUMABLE = ("run_folder", "logging", "checkpoint", "evaluation")
# But for this: the weights of the best validation are kept only if asked for from the start.
_FIXED = ("checkpoint.final_policy",)


def to_dict(config: Any) -> Any:
  """Nested plain dict of a config; tuples become lists, of a rule what was set."""
  if isinstance(config, AdvantageSpec):
    return {key: to_dict(value) for key, value in config.to_dict().items()}
  if dataclasses.is_dataclass(config):
    return {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
  return [to_dict(x) for x in config] if isinstance(config, (tuple, list)) else config


def from_dict(kind: type[T], values: Mapping[str, Any], *, where: str = "config") -> T:
  """Builds a config dataclass from a nested dict.

  Raises:
    ValueError: for unknown keys (naming them and those that exist) and impossible values.
  """
  if not isinstance(values, Mapping):
    raise ValueError(f"{where} must hold keys and values, not {values!r}.")
  if kind is AdvantageSpec:
    return typing.cast(T, AdvantageSpec.from_dict(_without_unset(values)))
  hints = typing.get_type_hints(kind)
  fields = [f.name for f in dataclasses.fields(typing.cast(Any, kind))]
  unknown = [key for key in values if key not in fields]
  if unknown:
    raise ValueError(
      f"{where} has unknown keys {', '.join(map(repr, unknown))}; known: {', '.join(fields)}."
    )
  arguments = {}
  for key, value in values.items():
    if hints[key] is AdvantageSpec and isinstance(value, str):
      value = AdvantageSpec.parse(value)
    elif dataclasses.is_dataclass(hints[key]):
      value = from_dict(typing.cast(type, hints[key]), value or {}, where=f"{where}.{key}")
    elif isinstance(value, list):
      value = tuple(value)
    elif isinstance(value, str) and _is_float(hints[key]):
      # YAML reads 1e-5, without a point, as a text.
      with contextlib.suppress(ValueError):
        value = float(value)
    elif isinstance(value, int) and not isinstance(value, bool) and _is_float(hints[key]):
      value = float(value)
    arguments[key] = value
  return kind(**arguments)


def _without_unset(advantage: Mapping[str, Any]) -> Mapping[str, Any]:
  # Run folders of version 0.1 list every argument of every rule, null where it was not set.
  if "options" not in advantage:
    return advantage
  return {k: v for k, v in advantage.items() if v is not None and k != "options"}


def _is_float(hint: Any) -> bool:
  kinds = {hint, *typing.get_args(hint)}
  return float in kinds and int not in kinds


def save_config(config: Any, path: str | pathlib.Path) -> None:
  """Writes a config as YAML, whole or not at all."""
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  write_text(path, yaml.safe_dump(to_dict(config), sort_keys=False))


def load_config(path: str | pathlib.Path) -> RunConfig:
  """Reads a YAML config; keys that are absent keep their defaults."""
  return from_dict(RunConfig, yaml.safe_load(pathlib.Path(path).read_text()), where=str(path))


def load_groups(path: str | pathlib.Path, names: Sequence[str]) -> dict[str, Any]:
  """Some groups of a YAML config, those that are there, without the checks of the whole.

  Whoever judges a finished policy needs no rule: a user's file may be gone by then.
  """
  values = yaml.safe_load(pathlib.Path(path).read_text())
  hints = typing.get_type_hints(RunConfig)
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


def check_resumable(stored: RunConfig, given: RunConfig) -> None:
  """Refuses to go on with a run under another config.

  Raises:
    ValueError: naming every field that differs and may not.
  """
  changed = [
    line
    for line in differences(stored, given)
    if line.split(".")[0].split(":")[0] not in RESUMABLE or line.split(":")[0] in _FIXED
  ]
  if changed:
    raise ValueError(
      f"{given.run_folder} holds a run with another config ({'; '.join(changed)}); run the same "
      "command to go on, or choose another --run-folder."
    )
