"""Pairs of a prompt and the completion to learn: where they come from, and their token ids.

A source is anything that prompts are read from (a JSONL or Parquet file, a hub data set, a recipe,
`reasoning_gym:task`, a function) whose rows also hold the completion.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np

from tea_jax.data.prompts import Prompt
from tea_jax.data.templates import render_prompt

Target = Literal["completion", "answer", "boxed_answer", "solution"]
_COMPLETION_COLUMNS = ("completion", "response", "output", "chosen", "solution", "answer")

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Pair:
  """A prompt and the completion that is learnt.

  Attributes:
    prompt: the prompt, with the row's other columns.
    completion: text, without an end token.
  """

  prompt: Prompt
  completion: str


@dataclasses.dataclass(frozen=True)
class EncodedPairs:
  """Token ids of pairs.

  Attributes:
    pairs: those that were kept.
    tokens: prompt and completion of each, the end token included.
    prompt_lengths: tokens of each prompt; what follows is learnt.
    num_dropped: pairs that were too long.
  """

  pairs: list[Pair]
  tokens: list[list[int]]
  prompt_lengths: list[int]
  num_dropped: int = 0

  def __len__(self) -> int:
    return len(self.tokens)

  @property
  def lengths(self) -> np.ndarray:
    """`[n]` tokens of each pair."""
    return np.array([len(row) for row in self.tokens], np.int32)


def make_pairs(
  prompts: Iterable[Prompt],
  *,
  target: Target = "completion",
  column: str | None = None,
  levels: Sequence[int] = (),
) -> list[Pair]:
  """Pairs of prompts that carry their completion in a column.

  Args:
    prompts: with columns.
    target: what is learnt. "completion": the column `column`, or the first of completion,
      response, output, chosen, solution, answer that the row has. "answer": the column `answer`
      alone. "boxed_answer": the same in `\\boxed{}`. "solution": the column `solution`.
    column: name of the completion's column, for "completion".
    levels: keep rows whose column `level` ("Level 3" or 3) is among these; empty for all.

  Raises:
    ValueError: a row has no such column, an empty completion, or no pair is left.
  """
  pairs, total = [], 0
  for number, prompt in enumerate(prompts):
    total += 1
    if levels and _level(prompt) not in levels:
      continue
    text = _completion(prompt, target, column)
    if text is None:
      wanted = column or (target if target in ("answer", "solution") else "completion")
      wanted = "answer" if target == "boxed_answer" else wanted
      raise ValueError(
        f"pair {number} has no column '{wanted}'; it has {sorted(prompt.columns)}: name the "
        "completion by data.completion_column"
      )
    if not text.strip():
      raise ValueError(f"pair {number} has an empty completion: {prompt.text[:80]!r}")
    pairs.append(Pair(prompt, text))
  if not pairs:
    which = f" of level {list(levels)}" if levels else ""
    raise ValueError(f"none of {total} rows is a pair{which}; there is nothing to train on")
  return pairs


def encode_pairs(
  pairs: Sequence[Pair],
  tokenizer: Any,
  *,
  end_token: int,
  max_length: int,
  template: Literal["chat", "raw"] = "chat",
  system_prompt: str | None = None,
  add_end: bool = True,
) -> EncodedPairs:
  """Renders and tokenizes pairs; those longer than `max_length` are dropped and counted.

  Prompt and completion are tokenized apart, as in sampling, where the completion starts on a token
  of its own.

  Args:
    pairs: to encode.
    tokenizer: of the policy.
    end_token: id that ends every completion and is learnt too.
    max_length: longest pair in tokens that is kept.
    template, system_prompt: see `render_prompt`.
    add_end: False for completions that are pieces of something longer.

  Raises:
    ValueError: if no pair fits.
  """
  kept, tokens, prompt_lengths = [], [], []
  for pair in pairs:
    text = render_prompt(pair.prompt, tokenizer, template, system_prompt)
    prompt = list(tokenizer(text, add_special_tokens=template == "raw")["input_ids"])
    completion = list(tokenizer(pair.completion, add_special_tokens=False)["input_ids"])
    row = [*prompt, *completion, *([end_token] if add_end else [])]
    if not prompt or not completion:
      part = "prompt" if not prompt else "completion"
      raise ValueError(f"the {part} of {pair.prompt.text[:80]!r} has no tokens")
    if len(row) <= max_length:
      kept.append(pair)
      tokens.append(row)
      prompt_lengths.append(len(prompt))
  dropped = len(pairs) - len(kept)
  if not kept:
    raise ValueError(f"all {dropped} pairs are longer than max_length={max_length} tokens")
  if dropped:
    logger.warning(
      "dropped %d of %d pairs longer than max_length=%d tokens", dropped, len(pairs), max_length
    )
  return EncodedPairs(kept, tokens, prompt_lengths, dropped)


def length_grouped(
  order: np.ndarray, lengths: np.ndarray, *, batch_size: int, rng: np.random.Generator
) -> np.ndarray:
  """An epoch's order in which the pairs of a batch have similar lengths.

  Windows of 16 batches are sorted by length, then their batches are shuffled: batches stay random,
  and little of them is padding.

  Args:
    order: `[n]` random indices.
    lengths: `[n]` tokens, by index.
    batch_size: pairs of a batch.
    rng: of the shuffle.
  """
  window = 16 * batch_size
  grouped = []
  for start in range(0, len(order) // batch_size * batch_size, window):
    part = order[start : start + window]
    part = part[: len(part) // batch_size * batch_size]
    batches = part[np.argsort(lengths[part], kind="stable")].reshape(-1, batch_size)
    grouped.append(batches[rng.permutation(len(batches))].ravel())
  rest = order[len(order) // batch_size * batch_size :]
  return np.concatenate([*grouped, rest]) if grouped else order


def _completion(prompt: Prompt, target: Target, column: str | None) -> str | None:
  columns = prompt.columns
  if target == "completion":
    name = column or next((c for c in _COMPLETION_COLUMNS if c in columns), None)
    value = columns.get(name) if name else None
    return _last_turn(value)
  if target == "boxed_answer":
    answer = columns.get("answer")
    return None if answer is None else f"\\boxed{{{answer}}}"
  value = columns.get(target)
  return None if value is None else str(value)


def _last_turn(value: Any) -> str | None:
  """A completion is a text, or messages of which the assistant's last turn is learnt."""
  if value is None or isinstance(value, str):
    return value
  turns = [m for m in value if isinstance(m, dict)] if isinstance(value, (list, tuple)) else []
  return str(turns[-1]["content"]) if turns else str(value)


def _level(prompt: Prompt) -> int | None:
  digits = "".join(filter(str.isdigit, str(prompt.columns.get("level", ""))))
  return int(digits) if digits else None
