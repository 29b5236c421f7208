"""Asks an OpenAI-compatible server for completions: time-outs, retries, errors without secrets."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from tea_jax.runtime.http_client import (
  check_address,
  check_status,
  check_timeout,
  filled_header,
  import_clients,
  retrying,
)
from tea_jax.runtime.secrets import printable, public_text, public_url

logger = logging.getLogger(__name__)

_CLIENTS = "a completions server"


class CompletionsError(OSError):
  """A server gave no completions, in spite of retries or at once."""


class CompletionsClient:
  """`POST {url}/v1/completions`, and what else a server of the same address offers.

  Connection failures, time-outs, 429 and 5xx are retried with growing pauses; any other error
  status fails at once with what the server said. Several threads may ask at the same time.
  """

  def __init__(
    self,
    url: str,
    *,
    timeout: float = 300.0,
    attempts: int = 5,
    first_pause: float = 1.0,
    longest_pause: float = 30.0,
    headers: Mapping[str, str] | None = None,
  ):
    """Args:
    url: of the server, http or https, with or without /v1/completions.
    timeout: seconds for one request.
    attempts: requests made before giving up.
    first_pause, longest_pause: seconds before the second attempt, doubling up to the longest.
    headers: sent with each request; `${NAME}` is replaced by the environment variable NAME.
    """
    if attempts < 1:
      raise ValueError(f"attempts={attempts} must be at least 1")
    check_address(url)
    check_timeout(timeout)
    httpx, _ = import_clients(_CLIENTS)
    self.root = url.rstrip("/").removesuffix("/completions").removesuffix("/v1")
    self.url = f"{self.root}/v1/completions"
    filled = {name: filled_header(name, value) for name, value in (headers or {}).items()}
    self._client = httpx.Client(timeout=timeout, headers=filled)
    self._retrying = retrying(
      _CLIENTS,
      attempts=attempts,
      first_pause=first_pause,
      longest_pause=longest_pause,
      before_sleep=self._say_retry,
    )

  def choices(self, body: Mapping[str, Any], what: str) -> list[dict[str, Any]]:
    """The server's choices, each with a `text`.

    Args:
      body: of the request.
      what: is asked for, as "prompt 3"; named by errors.

    Raises:
      CompletionsError: without an answer, or with one that holds no texts.
    """
    return self._asked(self._post_completion, body, f"no completions for {what}")

  def post(self, path: str, body: Mapping[str, Any]) -> None:
    """`POST {url}{path}`, whose answer does not matter.

    Raises:
      CompletionsError: without an answer, or with an error's status.
    """
    self._asked(lambda b: self._post(f"{self.root}{path}", b), body, f"no answer at {path}")

  def close(self) -> None:
    """Closes the connections."""
    self._client.close()

  def _asked(self, ask: Any, body: Mapping[str, Any], failure: str) -> Any:
    try:
      return self._retrying(ask, body)
    except Exception as error:
      raise CompletionsError(
        f"{public_url(self.url)} gave {failure}: "
        f"{type(error).__name__}: {printable(public_text(str(error))) or 'no details'}"
      ) from error

  def _post(self, url: str, body: Mapping[str, Any]) -> Any:
    answer = self._client.post(url, json=body)
    check_status(answer.status_code, answer.text[:200])
    return answer

  def _post_completion(self, body: Mapping[str, Any]) -> list[dict[str, Any]]:
    answer = self._post(self.url, body)
    said = answer.text[:200]
    try:
      choices = json.loads(answer.content)["choices"]
      texts = [choice["text"] for choice in choices]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
      raise ValueError(f"the answer is not of the form {{'choices': ...}}: {said}") from error
    if not choices or not all(isinstance(text, str) for text in texts):
      raise ValueError(f"the answer holds no texts: {said}")
    return choices

  def _say_retry(self, state: Any) -> None:
    error = state.outcome.exception()
    logger.warning(
      "%s: attempt %d failed (%s); trying again in %.1f s",
      public_url(self.url),
      state.attempt_number,
      printable(public_text(f"{type(error).__name__}: {error}")),
      state.next_action.sleep,
    )
