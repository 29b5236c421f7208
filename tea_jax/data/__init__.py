"""Data: prompts from anywhere, disjoint splits, templates, and their order in training."""

from tea_jax.data.batching import IteratorState, PromptIterator
from tea_jax.data.prompts import (
  Message,
  Prompt,
  column_names,
  columns_digest,
  load_prompts,
  make_prompt,
  reward_inputs,
  unique_prompts,
)
from tea_jax.data.recipes import RECIPES, evaluation_sets, load_openers, load_recipe
from tea_jax.data.splits import split_by_hash, without
from tea_jax.data.templates import EncodedPrompts, encode_prompts, render_prompt

__all__ = [
  "RECIPES",
  "EncodedPrompts",
  "IteratorState",
  "Message",
  "Prompt",
  "PromptIterator",
  "column_names",
  "columns_digest",
  "encode_prompts",
  "evaluation_sets",
  "load_openers",
  "load_prompts",
  "load_recipe",
  "make_prompt",
  "render_prompt",
  "reward_inputs",
  "split_by_hash",
  "unique_prompts",
  "without",
]
