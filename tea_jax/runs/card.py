"""The model card of a trained policy: what it is, what it was trained for, how to use it."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from tea_jax.runs.config import RunConfig
from tea_jax.runtime.files import write_text


def model_card(
  config: RunConfig, *, command: str | None = None, results: Mapping[str, Any] | None = None
) -> str:
  """README.md of a Hugging Face folder.

  Args:
    config: of the run.
    command: that trained it; by default the one with the run's stored config.
    results: results.json of `experiments.evaluate` or `experiments.compare`.
  """
  rule = config.advantage_rule()
  budget = rule.parameters.get("budget")
  aim = f" for the best of {budget} samples" if budget else ""
  facts = {
    "base model": config.model.name,
    "advantage rule": f"`{rule!r}`",
    "rewards": ", ".join(config.reward.public().functions),
    "prompts": config.data.prompts,
    "steps x prompts x rollouts": f"{config.steps} x {config.data.prompts_per_step} x "
    f"{config.sampling.num_rollouts}",
    "KL coefficient": f"{config.objective.kl_coefficient:g}",
    "seed": str(config.seed),
  }
  command = command or "python -m experiments.train --config config.yaml"
  blocks = [
    _front_matter(config),
    f"# {pathlib.Path(config.model.name).name}, post-trained{aim}",
    "Sample several completions and keep the best by reward: that is what it was trained for."
    if budget
    else "",
    _table(["", ""], list(facts.items())),
    f"Trained with tea_jax:\n\n```\n{command}\n```",
    _results(results) if results else "",
  ]
  return "\n\n".join(block for block in blocks if block) + "\n"


def write_model_card(folder: str | os.PathLike[str], config: RunConfig, **details: Any) -> None:
  """Writes README.md into a policy's folder; `details` are those of `model_card`."""
  write_text(pathlib.Path(folder) / "README.md", model_card(config, **details))


def _front_matter(config: RunConfig) -> str:
  lines = ["---", "library_name: transformers", "pipeline_tag: text-generation"]
  # Only a hub id names a model that the hub knows; a folder or a file does not.
  if config.model.name.count("/") == 1 and not pathlib.Path(config.model.name).exists():
    lines.append(f"base_model: {config.model.name}")
  return "\n".join([*lines, "tags:", "- tea_jax", "- best-of-n", "---"])


def _results(results: Mapping[str, Any]) -> str:
  budgets = results["budgets"]
  rows = [
    (name, *(f"{v:.3f} [{lo:.3f}, {hi:.3f}]" for v, lo, hi in zip(*_ends(interval), strict=True)))
    for name, interval in results["frontier"].items()
  ]
  return (
    f"Reward of the best of N on {results['num_prompts']} held-out prompts, 95 % over prompts:\n\n"
    + _table(["N", *map(str, budgets)], rows)
  )


def _ends(interval: Mapping[str, Any]) -> tuple[Any, Any, Any]:
  return interval["estimate"], interval["low"], interval["high"]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  lines = [header, ["---"] * len(header), *rows]
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)
