"""Texts from elsewhere, made harmless: secrets hidden, control characters spelled out."""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Mapping
from typing import Any

HIDDEN = "<hidden>"
_SECRET_NAME = re.compile(
  r"header|auth|token|secret|passw|api.?key|credential|cookie|bearer|signature", re.IGNORECASE
)
_REFERENCE = re.compile(r"(?:[A-Za-z]+ )?\$\{\w+\}")
_URL = re.compile(r"https?://[^\s'\",}\]]+")


def printable(text: str) -> str:
  """`text` with control characters (all but new lines and tabs) as escapes, for a terminal."""
  return "".join(
    c if c in "\n\t" or c.isprintable() else c.encode("unicode_escape", "replace").decode()
    for c in text
  )


def brief(error: object, limit: int = 300) -> str:
  """What a library's error says, as part of a sentence: one line, printable, not long."""
  text = printable(" ".join(str(error).split()))
  return text if len(text) <= limit else f"{text[: limit - 3]}..."


def public_url(url: str) -> str:
  """A URL without user, password and the values of its query."""
  try:
    parts = urllib.parse.urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
  except ValueError:
    return HIDDEN
  user = f"{HIDDEN}@" if "@" in parts.netloc else ""
  names = [f"{key}={HIDDEN}" for key, _ in urllib.parse.parse_qsl(parts.query, True)]
  query = "&".join(names) or (HIDDEN if parts.query else "")
  return urllib.parse.urlunsplit((parts.scheme, user + host, parts.path, query, ""))


def public_text(text: str) -> str:
  """`text` with every URL in it as `public_url` shows it."""
  return _URL.sub(lambda match: public_url(match[0]), text)


def public_values(value: Any, *, name: str = "") -> Any:
  """Nested options without secrets: whatever stands under a telling name, and parts of URLs.

  `${NAME}`, which stands for a variable of the environment, is no secret and stays.
  """
  if isinstance(value, Mapping):
    hidden = bool(_SECRET_NAME.search(name))
    return {
      public_text(str(key)): public_values(item, name="header" if hidden else str(key))
      for key, item in value.items()
    }
  if isinstance(value, list | tuple):
    return [public_values(item, name=name) for item in value]
  if isinstance(value, str):
    if _SECRET_NAME.search(name) and not _REFERENCE.fullmatch(value):
      return HIDDEN
    return public_text(value)
  return value
