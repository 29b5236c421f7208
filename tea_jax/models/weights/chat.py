"""Chat templates, on a fixed date."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tea_jax.runtime.extras import extra

_DATE = "26 Jul 2024"


def apply_chat_template(
  tokenizer: Any, conversation: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = False
) -> str:
  """The conversation as text, by the tokenizer's own template.

  Llama 3's template writes today's date unless it is given `date_string`; with it, the same prompt
  would have other tokens tomorrow, and neither a resumed run nor two compared ones would be on the
  same prompts. Here it is the date that the template itself falls back to.

  Args:
    tokenizer: of `transformers`, with a chat template.
    conversation: messages with `role` and `content`.
    add_generation_prompt: open the assistant's turn at the end.
  """
  with extra("train", "a chat template"):
    import jinja2  # noqa: F401 (transformers renders the template with it)
  return tokenizer.apply_chat_template(
    conversation,
    tokenize=False,
    add_generation_prompt=add_generation_prompt,
    date_string=_DATE,
  )
