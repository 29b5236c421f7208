"""Recipes: well-known data sets as prompts with fixed, disjoint splits.

Every recipe gives `train`, `validation`, `core250`, `core500` and `final`; `core250` is part of
`core500`, everything else is disjoint. In the main setting of arXiv 2605.10716 (B.2) 34,994 train +
512 validation + 2,000 final are 250 short of the 37,756 eligible prompts, so `core250` lies outside
`final`, and `core500` is `core250` with 250 prompts of `final`: `evaluation_sets` does the same.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tea_jax.data.prompts import (
  Message,
  Prompt,
  load_prompts,
  make_prompts,
  read_hub,
  unique_prompts,
)
from tea_jax.data.splits import split_by_hash, without

Row = dict[str, Any]
ReadRows = Callable[[str, str | None, str], Iterable[Any]]

_HH_TURN = re.compile(r"\n\n(Human|Assistant): ?")


@dataclasses.dataclass(frozen=True)
class Recipe:
  """How to read one data set.

  Attributes:
    dataset: hub id.
    configurations: of the data set, pooled.
    splits: splits to train on, pooled.
    held_out_split: the source's own test split. With `test_on_held_out` the core sets are drawn
      from it; either way its prompts are kept out of training.
    row: raw row -> row with `prompt` (or `messages`) and the columns to keep; None to skip it.
    system_prompt: how to ask, where the task wants a form of answer.
  """

  dataset: str
  row: Callable[[Row], Row | None]
  configurations: tuple[str | None, ...] = (None,)
  splits: tuple[str, ...] = ("train",)
  held_out_split: str | None = None
  test_on_held_out: bool = False
  system_prompt: str | None = None


def gsm8k_answer(solution: str) -> str:
  """The number behind the last `####` of a GSM8K solution, without thousands separators."""
  _, mark, tail = solution.rpartition("####")
  if not mark:
    raise ValueError(f"a GSM8K solution has no '####': {solution[:80]!r}")
  return tail.strip().replace(",", "")


def hh_messages(transcript: str) -> list[Message]:
  """The turns of an hh-rlhf transcript up to the last human one (the prompt)."""
  parts = _HH_TURN.split(transcript)
  roles = {"Human": "user", "Assistant": "assistant"}
  messages = [
    {"role": roles[role], "content": content.strip()}
    for role, content in zip(parts[1::2], parts[2::2], strict=True)
  ]
  while messages and messages[-1]["role"] == "assistant":
    messages.pop()
  return messages


def _math_row(row: Row) -> Row | None:
  from tea_jax.rewards.verifiers import extract_boxed

  answer = extract_boxed(row["solution"])
  if answer is None:
    return None
  return {
    "prompt": row["problem"],
    "answer": answer,
    "solution": row["solution"],
    "level": row.get("level"),
    "type": row.get("type"),
  }


def _hh_row(row: Row) -> Row | None:
  messages = hh_messages(row["chosen"])
  return {"messages": messages} if messages and messages[-1]["content"] else None


_BOXED = "Solve the problem step by step and put the final answer in \\boxed{}."

RECIPES: Mapping[str, Recipe] = {
  "ultrafeedback": Recipe(
    dataset="HuggingFaceH4/ultrafeedback_binarized",
    row=lambda row: {"prompt": row["prompt"]} if row["prompt"].strip() else None,
    splits=("train_prefs",),
    held_out_split="test_prefs",
  ),
  "hh_helpful": Recipe(
    dataset="Anthropic/hh-rlhf",
    row=_hh_row,
    configurations=("helpful-base", "helpful-online", "helpful-rejection-sampled"),
    splits=("train", "test"),
  ),
  "gsm8k": Recipe(
    dataset="openai/gsm8k",
    row=lambda row: {
      "prompt": row["question"],
      "answer": gsm8k_answer(row["answer"]),
      "solution": row["answer"],
    },
    configurations=("main",),
    held_out_split="test",
    test_on_held_out=True,
    system_prompt=_BOXED,
  ),
  "math": Recipe(
    dataset="EleutherAI/hendrycks_math",
    row=_math_row,
    configurations=(
      "algebra",
      "counting_and_probability",
      "geometry",
      "intermediate_algebra",
      "number_theory",
      "prealgebra",
      "precalculus",
    ),
    held_out_split="test",
    test_on_held_out=True,
    system_prompt=_BOXED,
  ),
}


def load_openers(
  *, num_test: int = 64, num_validation: int = 32, salt: str = "tea_jax"
) -> dict[str, list[Prompt]]:
  """The package's own short openers, split into `train`, `validation` and `test`; no hub needed."""
  return split_by_hash(
    load_prompts("openers"), {"test": num_test, "validation": num_validation}, salt=salt
  )


def load_recipe(
  name: str,
  *,
  num_validation: int = 512,
  num_final: int | None = None,
  salt: str = "tea_jax",
  read: ReadRows | None = None,
) -> dict[str, list[Prompt]]:
  """Reads a recipe's data set and splits it.

  Args:
    name: key of `RECIPES`.
    num_validation: prompts for checkpoint selection.
    num_final: prompts of the held-out pool beside `core250`, at least 250; by default 2,000, or
      what the source's test split holds.
    salt: of the splits.
    read: `(dataset, configuration, split) -> rows`; by default the hub.

  Returns:
    `train`, `validation`, `core250`, `core500`, `final`.
  """
  if name not in RECIPES:
    raise ValueError(f"unknown recipe '{name}'; use one of {', '.join(sorted(RECIPES))}")
  recipe = RECIPES[name]
  read = read or _read_configuration
  pool = _read_pool(recipe, recipe.splits, read)
  if recipe.held_out_split is not None:
    held_out = _read_pool(recipe, (recipe.held_out_split,), read)
    pool = without(pool, held_out)
    if recipe.test_on_held_out:
      size = min(2000, len(held_out) - 250) if num_final is None else num_final
      parts = evaluation_sets(held_out, num_final=size, num_validation=0, salt=salt)
      del parts["train"], parts["validation"]
      return {**split_by_hash(pool, {"validation": num_validation}, salt=salt), **parts}
  return evaluation_sets(
    pool, num_final=num_final or 2000, num_validation=num_validation, salt=salt
  )


def evaluation_sets(
  pool: list[Prompt], *, num_final: int, num_validation: int, salt: str = "tea_jax"
) -> dict[str, list[Prompt]]:
  """`core250` and `core500` (nested), `final`, `validation` and the rest as `train`."""
  if num_final < 250:
    raise ValueError(f"num_final={num_final} must be at least 250: core500 takes 250 of it")
  sizes = {"core250": 250, "final": num_final, "validation": num_validation}
  parts = split_by_hash(pool, sizes, salt=salt)
  return {**parts, "core500": parts["core250"] + parts["final"][:250]}


def _read_pool(recipe: Recipe, splits: Iterable[str], read: ReadRows) -> list[Prompt]:
  def rows() -> Iterable[Row]:
    for configuration in recipe.configurations:
      for split in splits:
        for raw in read(recipe.dataset, configuration, split):
          row = recipe.row(raw)
          if row is not None:
            yield row

  return list(unique_prompts(make_prompts(rows(), name=recipe.dataset)))


def _read_configuration(dataset: str, configuration: str | None, split: str) -> Iterable[Any]:
  if dataset != "Anthropic/hh-rlhf":
    return read_hub(dataset, configuration, split)
  return read_hub(dataset, None, split, data_dir=configuration)  # its subsets are folders
