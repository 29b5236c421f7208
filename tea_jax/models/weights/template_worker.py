"""Worker process that renders chat templates: JSON lines in, JSON lines out. Run by path.

A template comes with a model folder and is a program: here it has bounded time and memory, and
jinja's sandbox. The environment is that of `transformers`, on the request's date.
A line `{"template": str, "conversations": [...], "variables": {...}, "date": "2024-07-26",
"seconds": 5.0}` is answered by `{"texts": [...]}` or `{"error": str, "index": conversation}`.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import resource
import signal
import sys

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox

_MEMORY = 2 << 30  # bytes of address space
_LONGEST_TEXT = 1 << 24  # characters of one rendered conversation


class _Generation(jinja2.ext.Extension):
  """`{% generation %}` blocks mark the assistant's tokens; here they are plain text."""

  tags = {"generation"}  # noqa: RUF012 (jinja's own form)

  def parse(self, parser):
    line = next(parser.stream).lineno
    body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
    return jinja2.nodes.Scope(body).set_lineno(line)


class _Namespace(jinja2.utils.Namespace):
  def __setitem__(self, name, value):
    if isinstance(name, str) and name.startswith("_"):
      raise jinja2.exceptions.SecurityError(f"the name {name!r} is not allowed")
    super().__setitem__(name, value)


def _environment(date: str) -> jinja2.Environment:
  def raise_exception(message):
    raise jinja2.TemplateError(message)

  def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(
      value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )

  today = datetime.datetime.fromisoformat(date)
  environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
  )
  environment.filters["tojson"] = tojson
  environment.globals["raise_exception"] = raise_exception
  environment.globals["strftime_now"] = today.strftime
  environment.globals["namespace"] = _Namespace
  return environment


class _Expired(BaseException):
  """The time is over; no template can catch it."""


def _expire(*_) -> None:
  raise _Expired


def _answer(task: dict) -> dict:
  index = 0
  try:
    signal.setitimer(signal.ITIMER_PROF, task["seconds"])
    template = _environment(task["date"]).from_string(task["template"])
    texts = []
    for index, conversation in enumerate(task["conversations"]):
      text = template.render(messages=conversation, **task["variables"])
      if len(text) > _LONGEST_TEXT:
        return {"error": f"it writes {len(text)} characters", "index": index}
      texts.append(text)
    return {"texts": texts}
  except _Expired:
    return {"error": f"it takes more than {task['seconds']:g} s", "index": index}
  except MemoryError:
    return {"error": f"it takes more than {_MEMORY >> 30} GB of memory", "index": index}
  except Exception as error:
    return {"error": f"{type(error).__name__}: {error}"[:500], "index": index}
  finally:
    signal.setitimer(signal.ITIMER_PROF, 0)


def main() -> None:
  with contextlib.suppress(ValueError, OSError):  # macOS has no such limit
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
  signal.signal(signal.SIGPROF, _expire)
  replies, sys.stdout = sys.stdout, sys.stderr  # nothing else may print into the protocol
  for line in sys.stdin:
    reply = json.dumps(_answer(json.loads(line)))
    print(reply, file=replies, flush=True)


if __name__ == "__main__":
  main()
