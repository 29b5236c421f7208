"""From prompts to token ids: chat template or raw text, over-long prompts dropped with a count."""

from __future__ import annotations

import dataclasses
import functools
import logging
import sys
from collections.abc import Sequence
from typing import Any, Literal

from tea_jax.data.prompts import Prompt, column_names
from tea_jax.models.weights.chat import apply_chat_templates

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class EncodedPrompts:
  """Prompts with their token ids.

  Attributes:
    prompts: the prompts that were kept.
    tokens: ids of each, the generation prompt of a chat template included.
    dropped: the prompts that were too long.
  """

  prompts: list[Prompt]
  tokens: list[list[int]]
  dropped: list[Prompt]

  def __len__(self) -> int:
    return len(self.prompts)

  @functools.cached_property
  def columns(self) -> list[str]:
    """Columns that rewards get, the same in every call; see `column_names`."""
    return column_names(self.prompts)


def render_prompt(
  prompt: Prompt,
  tokenizer: Any,
  template: Literal["chat", "raw"],
  system_prompt: str | None = None,
) -> str:
  """The text that the policy continues; see `render_prompts`."""
  return render_prompts([prompt], tokenizer, template, system_prompt)[0]


def render_prompts(
  prompts: Sequence[Prompt],
  tokenizer: Any,
  template: Literal["chat", "raw"],
  system_prompt: str | None = None,
) -> list[str]:
  """The texts that the policy continues.

  Args:
    prompts: to render.
    tokenizer: with a chat template if `template` is "chat".
    template: "chat" renders the conversation and opens the assistant's turn; "raw" is the plain
      text, which the policy continues.
    system_prompt: put before the conversation (chat) or, with an empty line, the text (raw).

  Raises:
    ValueError: no chat template, or one that fails on a conversation.
  """
  if template == "raw":
    before = "" if system_prompt is None else f"{system_prompt}\n\n"
    return [before + prompt.text for prompt in prompts]
  if template != "chat":
    raise ValueError(f"template={template!r} must be 'chat' or 'raw'")
  if getattr(tokenizer, "chat_template", None) is None:
    raise ValueError(
      "the tokenizer has no chat template; render plain text with --data.no-chat "
      "(template='raw' in Python)"
    )
  first = [] if system_prompt is None else [{"role": "system", "content": system_prompt}]
  conversations = [[*first, *prompt.conversation] for prompt in prompts]
  return apply_chat_templates(tokenizer, conversations, add_generation_prompt=True)


def encode_prompts(
  prompts: Sequence[Prompt],
  tokenizer: Any,
  *,
  template: Literal["chat", "raw"] = "chat",
  max_prompt_length: int,
  system_prompt: str | None = None,
) -> EncodedPrompts:
  """Renders and tokenizes prompts.

  A chat template writes its own special tokens, so none are added to it; raw text gets those that
  the tokenizer adds by itself (a BOS, for Llama).

  Args:
    prompts: to encode.
    tokenizer: of the policy.
    template, system_prompt: see `render_prompt`.
    max_prompt_length: longest prompt in tokens that is kept.

  Raises:
    ValueError: no prompt fits, a prompt has no tokens, or a sequence starts with two BOS.
  """
  if tokenizer is None:
    raise ValueError(
      "the model has no tokenizer; put the files of its tokenizer (tokenizer.json, "
      "tokenizer_config.json) beside its weights"
    )
  kept, tokens, dropped = [], [], []
  shortest = sys.maxsize
  bos = getattr(tokenizer, "bos_token_id", None)
  eos = getattr(tokenizer, "eos_token_id", None)
  texts = render_prompts(prompts, tokenizer, template, system_prompt)
  for prompt, text in zip(prompts, texts):
    ids = list(tokenizer(text, add_special_tokens=template == "raw")["input_ids"])
    if template == "raw" and len(ids) > 1 and ids[-1] == eos:
      ids.pop()  # added by the tokenizer; the policy would begin another text behind it
    if not ids:
      way = " under the chat template" if template == "chat" else ""
      raise ValueError(f"prompt {prompt.id} has no tokens{way}: {prompt.text[:80]!r}")
    if bos is not None and ids[:2] == [bos, bos]:
      raise ValueError(f"prompt {prompt.id} starts with two BOS tokens: {text[:80]!r}")
    if len(ids) > max_prompt_length:
      dropped.append(prompt)
      shortest = min(shortest, len(ids))
    else:
      kept.append(prompt)
      tokens.append(ids)
  if prompts and not kept:
    raise ValueError(
      f"all {len(dropped)} prompts are longer than max_prompt_length={max_prompt_length} tokens "
      f"(the shortest has {shortest}); raise --data.max-prompt-length"
    )
  if dropped:
    logger.warning(
      "dropped %d of %d prompts longer than max_prompt_length=%d tokens",
      len(dropped),
      len(prompts),
      max_prompt_length,
    )
  return EncodedPrompts(kept, tokens, dropped)
