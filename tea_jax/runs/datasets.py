"""The prompts and pairs of a run: loaded and split as its flags say, encoded for its policy."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from tea_jax.data import (
  RECIPES,
  EncodedPrompts,
  Prompt,
  encode_prompts,
  load_openers,
  load_prompts,
  load_recipe,
  split_by_hash,
)
from tea_jax.data.supervised import EncodedPairs, Pair, encode_pairs, make_pairs
from tea_jax.models.policy import Policy
from tea_jax.runs.groups import DataConfig, RolloutConfig
from tea_jax.runs.supervised import PairConfig

logger = logging.getLogger(__name__)

Splits = Mapping[str, Sequence[Prompt]]
"""Name of a split -> its prompts."""


def load_splits(options: DataConfig) -> dict[str, list[Prompt]]:
  """`train`, `validation`, `test` (and a recipe's other splits), disjoint by content.

  A recipe brings its own sizes (`test_split` says which of them is `test`); other sources are cut
  by hash into `num_test`, `num_validation` and the rest.
  """
  sizes = {"test": options.num_test, "validation": options.num_validation}
  recipe = options.prompts.replace("-", "_")
  if recipe in RECIPES:
    splits = load_recipe(recipe)
    return {**splits, "test": splits[options.test_split]}
  if options.prompts == "openers":
    return load_openers(num_test=options.num_test, num_validation=options.num_validation)
  prompts = load_prompts(options.prompts, prompt_column=options.column)
  return split_by_hash(prompts, _fitting(sizes, len(prompts)))


def _fitting(sizes: Mapping[str, int], num_prompts: int) -> dict[str, int]:
  """Sizes of the held-out splits; at most a quarter each of few prompts, and said so."""
  if sum(sizes.values()) < num_prompts:
    return dict(sizes)
  fitting = {name: min(size, max(1, num_prompts // 4)) for name, size in sizes.items()}
  logger.warning(
    "the %d prompts are too few to hold out %s; holding out %s instead (data.num_test, "
    "data.num_validation)",
    num_prompts,
    dict(sizes),
    fitting,
  )
  return fitting


def encode(
  prompts: Sequence[Prompt], policy: Policy, options: DataConfig, sampling: RolloutConfig
) -> EncodedPrompts:
  """Token ids of prompts under the run's template; over-long ones are dropped and counted.

  Raises:
    ValueError: if no prompt leaves room for a completion in the model's context.
  """
  room = policy.config.max_positions - sampling.max_completion_length
  if room < 1:
    raise ValueError(
      f"sampling.max_completion_length={sampling.max_completion_length} leaves no room for a "
      f"prompt in the model's context of {policy.config.max_positions} tokens."
    )
  return encode_prompts(
    prompts,
    policy.tokenizer,
    template="chat" if options.chat else "raw",
    max_prompt_length=min(options.max_prompt_length, room),
    system_prompt=_system_prompt(options.prompts, options.system_prompt),
  )


def _system_prompt(source: str, given: str | None) -> str | None:
  """The one that the flags give, or else the recipe's own."""
  recipe = RECIPES.get(source.replace("-", "_"))
  return recipe.system_prompt if given is None and recipe is not None else given


def load_pair_splits(options: PairConfig) -> dict[str, list[Pair]]:
  """`train`, `validation` and `test` pairs, disjoint by the content of their prompts."""
  if not options.pairs:
    raise ValueError(
      "data.pairs is empty; name a recipe (gsm8k, math), reasoning_gym:task, a .jsonl or .parquet "
      "file, or a Hugging Face dataset."
    )
  recipe = options.pairs.replace("-", "_")
  if recipe in RECIPES:
    splits = load_recipe(recipe)
    splits = {"test": splits["core500"], **splits}
  else:
    prompts = load_prompts(options.pairs, prompt_column=options.prompt_column)
    sizes = {"test": options.num_test, "validation": options.num_validation}
    splits = split_by_hash(prompts, sizes)

  def pairs(name: str, limit: int) -> list[Pair]:
    if not splits[name]:
      return []
    made = make_pairs(
      splits[name],
      target=options.target,
      column=options.completion_column,
      levels=options.levels,
    )
    return made[:limit] if limit else made

  return {
    "train": pairs("train", options.limit),
    "validation": pairs("validation", options.num_validation),
    "test": pairs("test", options.num_test),
  }


def encode_run_pairs(pairs: Sequence[Pair], policy: Policy, options: PairConfig) -> EncodedPairs:
  """Token ids of pairs under the run's template; over-long ones are dropped and counted."""
  own = getattr(policy.tokenizer, "eos_token_id", None)
  ends = policy.config.eos_token_ids
  if options.max_length > policy.config.max_positions:
    raise ValueError(
      f"data.max_length={options.max_length} is beyond the model's context of "
      f"{policy.config.max_positions} tokens."
    )
  return encode_pairs(
    pairs,
    policy.tokenizer,
    end_token=own if own in ends else ends[0],
    max_length=options.max_length,
    template="chat" if options.chat else "raw",
    system_prompt=_system_prompt(options.pairs, options.system_prompt),
    add_end=options.end_token,
  )
