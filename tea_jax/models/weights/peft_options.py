"""What of a PEFT adapter's options we merge, and the scale that they give a module."""

from __future__ import annotations

import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

# A repeat behind a group: what makes the time of a match exponential.
_REPEATED_GROUP = re.compile(r"\)\s*[*+{?]")
# Options of PEFT that do not change what an adapter does to the weights, whatever their values.
_HARMLESS = (
  *("peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
  *("task_type", "inference_mode", "r", "lora_alpha", "lora_dropout", "target_modules"),
  *("exclude_modules", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern"),
  *("fan_in_fan_out", "megatron_config", "megatron_core", "use_rslora", "ephemeral_gpu_offload"),
  "qalora_group_size",
  *("runtime_config", "eva_config", "lora_ga_config", "corda_config", "loftq_config"),
)
# Values of others that switch them off; an option that is not known must be off as well.
_OFF = (None, False, [], {})
# How an adapter was begun; other ways (pissa, olora, corda, loftq) change the base weights too.
_PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")


def check_options(options: Mapping[str, Any], file: pathlib.Path) -> None:
  """Refuses, by name, every option that makes an adapter more than W + scale B A, or malformed.

  Args:
    options: of `adapter_config.json`.
    file: named in errors.

  Raises:
    ValueError: naming the option and its value.
  """

  def refuse(key: str, what: str) -> None:
    raise ValueError(f"{key}={options.get(key)!r:.80} of the adapter {file} {what}.")

  if options.get("peft_type") != "LORA":
    refuse("peft_type", "is not supported; supported: LORA")
  for key, value in options.items():
    if key == "init_lora_weights":
      if not any(value is start or value == start for start in _PLAIN_STARTS):
        refuse(key, "changes the base weights too, which is not supported")
    elif key == "bias":
      if value not in (None, "none"):
        refuse(key, "is not supported; it must be none")
    elif key not in _HARMLESS and not any(value is off or value == off for off in _OFF):
      refuse(key, "is not supported; it must be off")
    elif key not in _HARMLESS and isinstance(value, int) and not isinstance(value, bool):
      refuse(key, "is not supported; it must be off")  # 0 equals False
  rank = options.get("r")
  if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
    refuse("r", "must be a whole number, at least 1")
  if not isinstance(options.get("use_rslora", False), bool | None):
    refuse("use_rslora", "must be true or false")
  if not _is_scale(options.get("lora_alpha")):
    refuse("lora_alpha", "must be a finite number")
  for key in ("alpha_pattern", "rank_pattern"):
    patterns = options.get(key) or {}
    if not isinstance(patterns, dict) or not all(map(_is_scale, patterns.values())):
      refuse(key, "must be an object of names and numbers")
    for pattern in patterns:
      try:
        re.compile(pattern)
      except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"{key} of {file}: {pattern!r:.80} is no pattern ({error})") from error
      if _REPEATED_GROUP.search(pattern) or len(re.findall(r"[*+{]", pattern)) > 3:
        refuse(key, "repeats a group or too much, which may take for ever to match")


def scale_of(options: Mapping[str, Any], module: str, rank: int) -> float:
  """The scale of one module; patterns name modules by a suffix, as in PEFT."""
  alpha = options["lora_alpha"]
  for pattern, value in (options.get("alpha_pattern") or {}).items():
    if _names(pattern, module):
      alpha = value
      break
  return alpha / (math.sqrt(rank) if options.get("use_rslora") else rank)


def _is_scale(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _names(pattern: str, module: str) -> bool:
  """Whether a pattern of PEFT, which names modules by a suffix, names this one."""
  return re.match(rf"(.*\.)?({pattern})$", module) is not None
