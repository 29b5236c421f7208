"""Chat templates, on a fixed date, in a process of bounded time and memory."""

from __future__ import annotations

import atexit
import pathlib
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from tea_jax.runtime.extras import extra
from tea_jax.runtime.secrets import printable
from tea_jax.runtime.worker_process import WorkerProcess

# The date that Llama 3's template itself falls back to.
_DATE, _DATE_STRING = "2024-07-26", "26 Jul 2024"
_SECONDS, _SECONDS_EACH = 5.0, 0.01
_BATCH = 256  # conversations of one request
_worker = WorkerProcess(
  str(pathlib.Path(__file__).with_name("template_worker.py")), longest_answer=1 << 30
)
_lock = threading.Lock()
atexit.register(_worker.stop)


def apply_chat_template(
  tokenizer: Any, conversation: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = False
) -> str:
  """One conversation as text; see `apply_chat_templates`."""
  return apply_chat_templates(
    tokenizer, [conversation], add_generation_prompt=add_generation_prompt
  )[0]


def apply_chat_templates(
  tokenizer: Any,
  conversations: Sequence[Sequence[Mapping[str, Any]]],
  *,
  add_generation_prompt: bool = False,
) -> list[str]:
  """Conversations as texts, by the tokenizer's own template.

  A template is a program that comes with the model, so it runs in a process of its own, with
  jinja's sandbox. Llama 3's template writes today's date unless it is given `date_string`; with it,
  the same prompt would have other tokens tomorrow, and neither a resumed run nor two compared ones
  would be on the same prompts. Here it is the date that the template itself falls back to.

  Args:
    tokenizer: of `transformers`, with a chat template.
    conversations: messages with `role` and `content` each.
    add_generation_prompt: open the assistant's turn at the end.

  Raises:
    ValueError: what the template raises, or that it takes too much time or memory.
  """
  with extra("train", "a chat template"):
    import jinja2  # noqa: F401 (the worker renders with it)
  get = getattr(tokenizer, "get_chat_template", None)
  template = tokenizer.chat_template if get is None else get()
  special = getattr(tokenizer, "special_tokens_map", {})
  variables = {
    **{name: _texts(value) for name, value in special.items()},
    "tools": None,
    "documents": None,
    "add_generation_prompt": add_generation_prompt,
    "date_string": _DATE_STRING,
  }
  texts: list[str] = []
  for start in range(0, len(conversations), _BATCH):
    batch = [list(map(dict, messages)) for messages in conversations[start : start + _BATCH]]
    seconds = _SECONDS + _SECONDS_EACH * len(batch)
    task = {
      "template": template,
      "conversations": batch,
      "variables": variables,
      "date": _DATE,
      "seconds": seconds,
    }
    with _lock:
      # Seconds are of the processor; a busy machine may need some more by the clock.
      answer = _worker.ask(task, 4 * seconds)
    if "texts" not in answer:
      error = answer.get("error", f"it takes more than {4 * seconds:g} s")
      roles = [str(message.get("role")) for message in batch[answer.get("index", 0)]]
      raise ValueError(
        f"the chat template of the tokenizer fails: {printable(' '.join(error.split()))} (the "
        f"messages' roles are {', '.join(roles)}); "
        + (
          "leave out the system prompt, or render plain text with --data.no-chat"
          if "system" in roles
          else "render plain text with --data.no-chat"
        )
      )
    texts += answer["texts"]
  return texts


def _texts(value: Any) -> Any:
  return [str(item) for item in value] if isinstance(value, list | tuple) else str(value)
