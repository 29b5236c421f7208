"""Rewards from an HTTP server: batched, concurrent, with time-outs and retries.

Protocol: `POST url` with `{"prompts": [...], "completions": [...], "columns": {name: [...]}}`
(equally many entries everywhere; `columns` holds those named by the option `columns`, by default
none), answered with status 200 by `{"scores": [...]}`, one number or null ("not scored") for each
completion. `headers` are sent with every request; `${NAME}` in one is replaced by the environment
variable NAME, so that no token has to stand in a command or a file.
"""

from __future__ import annotations

import hashlib
import json
import logging
import queue
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from tea_jax.runtime.http_client import (
  ServerBusy,
  check_address,
  check_status,
  check_timeout,
  filled_header,
  import_clients,
  retrying,
)
from tea_jax.runtime.secrets import HIDDEN, brief, public_text, public_url

logger = logging.getLogger(__name__)

_CLIENTS = "a reward or judge behind HTTP"
_LARGEST_ANSWER = 64 * 2**20  # bytes


class RemoteReward:
  """Sends completions to a scoring server in batches.

  Connection failures, time-outs, 429 and 5xx answers are retried with growing pauses; any other
  error status fails at once with what the server said. When a call fails in spite of retries, the
  scores that did arrive are kept, so calling again asks only for the rest.
  """

  name = "remote"
  not_identity = ("url", "batch_size", "row_wise")

  def __init__(
    self,
    url: str,
    *,
    batch_size: int = 32,
    timeout: float = 60.0,
    attempts: int = 5,
    first_pause: float = 1.0,
    longest_pause: float = 30.0,
    concurrency: int = 4,
    columns: Sequence[str] = (),
    headers: Mapping[str, str] | None = None,
    row_wise: bool = False,
  ):
    """Args:
    url: of the server, http or https.
    batch_size: completions in one request.
    timeout: seconds for one request, from the first byte sent to the last received.
    attempts: requests made for a batch before giving up.
    first_pause, longest_pause: seconds before the second attempt, doubling up to the longest.
    concurrency: requests at the same time.
    columns: data-set columns to send along.
    headers: sent with each request, e.g. {"Authorization": "Bearer ${TOKEN}"}.
    row_wise: the server scores a row by that row alone, so it may be asked for finished rows while
      others are sampled, and by several processes.
    """
    for option, value, least in (
      ("batch_size", batch_size, 1),
      ("attempts", attempts, 1),
      ("concurrency", concurrency, 1),
    ):
      if value < least:
        raise ValueError(f"{option}={value} must be at least {least}")
    check_address(url)
    if HIDDEN in url:
      raise ValueError(f"{url} is an address whose secrets were left out; give it again")
    check_timeout(timeout)
    self._httpx, _ = import_clients(_CLIENTS)
    self.url = url
    self.batch_size = batch_size
    self.columns = tuple(columns)
    self.row_wise = row_wise
    self._attempts = attempts
    self._pauses = (first_pause, longest_pause)
    self._concurrency = concurrency
    self._timeout = timeout
    self._headers = {name: filled_header(name, value) for name, value in (headers or {}).items()}
    # A client a request: one that takes too long is closed without harm to the others.
    self._clients: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for _ in range(concurrency):
      self._clients.put(self._new_client())
    self._arrived: dict[bytes, float | None] = {}

  def __call__(
    self, prompts: Sequence[str], completions: Sequence[str], **columns: Any
  ) -> list[float | None]:
    missing = [name for name in self.columns if name not in columns]
    if missing:
      raise ValueError(f"the remote reward is to send the columns {missing}, which the data lacks")
    rows = [
      {
        "prompt": prompt,
        "completion": completion,
        "columns": {name: columns[name][index] for name in self.columns},
      }
      for index, (prompt, completion) in enumerate(zip(prompts, completions, strict=True))
    ]
    keys = [_digest(row) for row in rows]
    open_rows = list({k: i for i, k in enumerate(keys) if k not in self._arrived}.values())
    batches = [
      open_rows[start : start + self.batch_size]
      for start in range(0, len(open_rows), self.batch_size)
    ]

    def fetch(batch: list[int]) -> None:
      scores = self._request([rows[index] for index in batch], first_row=batch[0])
      self._arrived.update(zip((keys[index] for index in batch), scores))

    threads = ThreadPoolExecutor(self._concurrency)
    try:
      for done in as_completed([threads.submit(fetch, batch) for batch in batches]):
        done.result()
    finally:
      # After a batch that failed for good, or a stop, the waiting ones are not sent.
      threads.shutdown(cancel_futures=True)
    scores = [self._arrived[key] for key in keys]
    self._arrived.clear()
    return scores

  @property
  def required_columns(self) -> tuple[str, ...]:
    """Columns that the data must have."""
    return self.columns

  def close(self) -> None:
    """Closes the connections."""
    while not self._clients.empty():
      self._clients.get().close()

  def _new_client(self) -> Any:
    try:
      return self._httpx.Client(timeout=self._timeout, headers=self._headers)
    except Exception as error:
      names = ", ".join(self._headers)
      raise ValueError(f"the headers ({names}) of {public_url(self.url)} cannot be sent") from error

  def _request(self, rows: list[dict[str, Any]], first_row: int) -> list[float | None]:
    body = {
      "prompts": [row["prompt"] for row in rows],
      "completions": [row["completion"] for row in rows],
      "columns": {name: [row["columns"][name] for row in rows] for name in self.columns},
    }
    first, longest = self._pauses
    again = retrying(
      _CLIENTS,
      attempts=self._attempts,
      first_pause=first,
      longest_pause=longest,
      before_sleep=self._say_retry,
    )
    try:
      return again(self._within_timeout, body)
    except Exception as error:
      failure = RuntimeError(
        f"{public_url(self.url)} gave no scores for {len(rows)} completions: "
        f"{type(error).__name__}: {self._told(error)}"
      )
      failure.row = first_row  # pyright: ignore[reportAttributeAccessIssue]
      raise failure from error

  def _told(self, error: BaseException | None) -> str:
    """What an error says, on one line, without secrets and control characters."""
    text = str(error) or "no details"
    for secret in (self.url, *self._headers.values()):
      text = text.replace(secret, public_url(secret) if secret == self.url else HIDDEN)
    return brief(public_text(text), 500)

  def _say_retry(self, state: Any) -> None:
    logger.warning(
      "%s: attempt %d of %d failed (%s); trying again in %.1f s",
      public_url(self.url),
      state.attempt_number,
      self._attempts,
      self._told(state.outcome.exception()),
      state.next_action.sleep,
    )

  def _within_timeout(self, body: dict[str, Any]) -> list[float | None]:
    """`_post`, ended when the whole request takes longer than the time-out."""
    client, outcome = self._clients.get(), queue.SimpleQueue()

    def work() -> None:
      try:
        outcome.put((self._post(client, body), None))
      except BaseException as error:
        outcome.put((None, error))

    threading.Thread(target=work, daemon=True).start()
    try:
      scores, error = outcome.get(timeout=self._timeout)
    except queue.Empty:
      threading.Thread(target=client.close, daemon=True).start()
      client = self._new_client()
      raise ServerBusy(f"no whole answer within {self._timeout:g} s") from None
    finally:
      self._clients.put(client)
    if error is not None:
      raise error
    return scores

  def _post(self, client: Any, body: dict[str, Any]) -> list[float | None]:
    with client.stream("POST", self.url, json=body) as answer:
      received = b""
      for chunk in answer.iter_bytes():
        received += chunk
        if len(received) > _LARGEST_ANSWER:
          raise ValueError(f"the answer has more than {_LARGEST_ANSWER >> 20} MB")
    text = received[:400].decode("utf-8", "replace")[:200]
    check_status(answer.status_code, text)
    try:
      scores = json.loads(received)["scores"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
      raise ValueError(f"the answer is not of the form {{'scores': [...]}}: {text}") from error
    if not isinstance(scores, list) or len(scores) != len(body["completions"]):
      size = len(scores) if isinstance(scores, list) else type(scores).__name__
      raise ValueError(f"{size} scores came back for {len(body['completions'])} completions")
    for score in scores:
      if score is not None and (isinstance(score, bool) or not isinstance(score, int | float)):
        raise ValueError(f"the score {str(score)[:80]!r} is not a number")
    return scores


def _digest(row: dict[str, Any]) -> bytes:
  return hashlib.sha256(json.dumps(row, sort_keys=True, default=str).encode()).digest()
