"""What clients of HTTP servers share: packages, headers, retries, and what is worth one."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

from tea_jax.runtime.extras import extra
from tea_jax.runtime.secrets import HIDDEN, public_url


class ServerBusy(Exception):
  """An answer, or none, that may be different next time."""


def import_clients(what: str) -> tuple[Any, Any]:
  """`(httpx, tenacity)`; without them, an error that names the extra `what` needs."""
  with extra("rewards", what):
    import httpx
    import tenacity
  return httpx, tenacity


def check_address(url: str) -> None:
  """Raises ValueError for an address that is not http or https."""
  if not url.startswith(("http://", "https://")):
    raise ValueError(f"url={public_url(url)!r} must start with http:// or https://")


def check_timeout(timeout: float) -> None:
  """Raises ValueError for a time that is not positive and finite."""
  if not 0 < timeout < float("inf"):
    raise ValueError(f"timeout={timeout} must be positive and finite")


def check_status(status: int, said: str) -> None:
  """Raises ServerBusy for 429 and 5xx, ValueError for any other that is not 2xx."""
  if status == 429 or status >= 500:
    raise ServerBusy(f"status {status}: {said}")
  if not 200 <= status < 300:
    raise ValueError(f"status {status}: {said}")


def filled_header(name: str, value: str) -> str:
  """A header's value with `${NAME}` replaced from the environment."""
  if not isinstance(value, str):
    raise ValueError(f"the header {name} must be a text, not {type(value).__name__}")
  if HIDDEN in value:
    raise ValueError(f"the header {name} was left out of what was stored; give it again")

  def variable(match: re.Match[str]) -> str:
    if match[1] not in os.environ:
      raise ValueError(f"the header {name} needs the environment variable {match[1]}")
    return os.environ[match[1]]

  return re.sub(r"\$\{(\w+)\}", variable, value)


def retrying(
  what: str,
  *,
  attempts: int,
  first_pause: float,
  longest_pause: float = 30.0,
  before_sleep: Callable[[Any], None] | None = None,
) -> Any:
  """Calls a function again after failed connections, time-outs and `ServerBusy`.

  Args:
    what: see `import_clients`.
    attempts: calls before the last error is raised.
    first_pause, longest_pause: seconds before the second call, doubling up to the longest.
    before_sleep: told of each failed attempt, see tenacity.

  Returns:
    `tenacity.Retrying`: `retrying(...)(function, *arguments)`.
  """
  httpx, tenacity = import_clients(what)
  return tenacity.Retrying(
    stop=tenacity.stop_after_attempt(attempts),
    wait=tenacity.wait_exponential(multiplier=first_pause, min=first_pause, max=longest_pause),
    retry=tenacity.retry_if_exception_type((httpx.TransportError, ServerBusy)),
    reraise=True,
    before_sleep=before_sleep,
  )
