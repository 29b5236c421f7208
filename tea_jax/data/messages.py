"""Messages of a conversation, read from rows: texts, parts of text, and nothing guessed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

Message = dict[str, str]

# What a chat template may read beside role and content, and what this library would lose.
_UNSUPPORTED = (
  *("tool_calls", "tool_call_id", "function_call", "name", "reasoning_content", "thinking"),
  *("images", "audio", "videos", "documents"),
)


def read_messages(content: Any, where: str) -> tuple[Message, ...]:
  """A conversation from a row; parts of text are joined by new lines.

  Args:
    content: messages with `role` and `content`.
    where: of the row, begins every error.

  Raises:
    ValueError: for content that is no text, and for fields that would be lost.
  """
  if not isinstance(content, Iterable) or isinstance(content, str | bytes | Mapping):
    raise ValueError(
      f"{where} is neither a text nor a list of messages with role and content: {content!r:.80}"
    )
  return tuple(_message(m, f"message {i} of {where}") for i, m in enumerate(content))


def _message(message: Any, where: str) -> Message:
  if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
    raise ValueError(f"{where} needs a role and a content: {message!r:.80}")
  lost = [name for name in _UNSUPPORTED if message.get(name) not in (None, [], {}, "")]
  if lost:
    raise ValueError(f"{where} has {', '.join(lost)}, which cannot be kept; take such rows out")
  role = message["role"]
  if not isinstance(role, str) or not role.strip():
    raise ValueError(f"{where} has the role {role!r:.80}, which is no text")
  return {"role": role, "content": _text(message["content"], where)}


def _text(content: Any, where: str) -> str:
  if isinstance(content, str):
    return check_text(content, where)
  if not isinstance(content, list | tuple) or not content:
    raise ValueError(f"{where} has a content that is no text: {content!r:.80}")
  texts = []
  for part in content:
    text = part.get("text") if isinstance(part, Mapping) else part
    others = part if isinstance(part, Mapping) else {}
    wrong = others.get("type", "text") != "text" or any(
      value is not None for name, value in others.items() if name not in ("type", "text")
    )
    if wrong or not isinstance(text, str):
      raise ValueError(f"{where} has a part that is no text: {part!r:.80}")
    texts.append(check_text(text, where))
  return "\n".join(texts)


def check_text(text: str, where: str) -> str:
  """`text` itself.

  Raises:
    ValueError: if it cannot be encoded.
  """
  try:
    text.encode("utf-8")
  except UnicodeEncodeError as error:
    raise ValueError(f"{where} holds half of a surrogate pair, which is no text") from error
  return text
