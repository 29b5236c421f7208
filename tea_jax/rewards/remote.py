"""Rewards from an HTTP server: batched, concurrent, with time-outs and retries.

Protocol: `POST url` with `{"prompts": [...], "completions": [...], "columns": {name: [...]}}`,
answered by `{"scores": [...]}`, one number or null ("not scored") for each completion.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any


class RemoteReward:
  """Sends completions to a scoring server in batches.

  Connection failures, time-outs, 429 and 5xx answers are retried with growing pauses; any other
  error status fails at once with what the server said. When a call fails in spite of retries, the
  scores that did arrive are kept, so calling again asks only for the rest.
  """

  name = "remote"

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
  ):
    """Args:
    url: of the server, http or https.
    batch_size: completions in one request.
    timeout: seconds for one request.
    attempts: requests made for a batch before giving up.
    first_pause, longest_pause: seconds before the second attempt, doubling up to the longest.
    concurrency: requests at the same time.
    columns: data-set columns to send along.
    headers: sent with each request, e.g. an authorisation.
    """
    for option, value, least in (
      ("batch_size", batch_size, 1),
      ("attempts", attempts, 1),
      ("concurrency", concurrency, 1),
    ):
      if value < least:
        raise ValueError(f"{option}={value} must be at least {least}")
    if not url.startswith(("http://", "https://")):
      raise ValueError(f"url={url!r} must start with http:// or https://")
    if timeout <= 0:
      raise ValueError(f"timeout={timeout} must be positive")
    self._httpx, self._tenacity = _import_clients()
    self.url = url
    self.batch_size = batch_size
    self.columns = tuple(columns)
    self._attempts = attempts
    self._pauses = (first_pause, longest_pause)
    self._concurrency = concurrency
    self._client = self._httpx.Client(timeout=timeout, headers=dict(headers or {}))
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

  def close(self) -> None:
    """Closes the connections."""
    self._client.close()

  def _request(self, rows: list[dict[str, Any]], first_row: int) -> list[float | None]:
    body = {
      "prompts": [row["prompt"] for row in rows],
      "completions": [row["completion"] for row in rows],
      "columns": {name: [row["columns"][name] for row in rows] for name in self.columns},
    }
    tenacity = self._tenacity
    first, longest = self._pauses
    retrying = tenacity.Retrying(
      stop=tenacity.stop_after_attempt(self._attempts),
      wait=tenacity.wait_exponential(multiplier=first, min=first, max=longest),
      retry=tenacity.retry_if_exception_type((self._httpx.TransportError, _ServerBusy)),
      reraise=True,
    )
    try:
      return retrying(self._post, body)
    except Exception as error:
      failure = RuntimeError(
        f"{self.url} gave no scores for {len(rows)} completions: "
        f"{type(error).__name__}: {error or 'no details'}"
      )
      failure.row = first_row  # pyright: ignore[reportAttributeAccessIssue]
      raise failure from error

  def _post(self, body: dict[str, Any]) -> list[float | None]:
    answer = self._client.post(self.url, json=body)
    if answer.status_code == 429 or answer.status_code >= 500:
      raise _ServerBusy(f"status {answer.status_code}: {answer.text[:200]}")
    if answer.status_code >= 400:
      raise ValueError(f"status {answer.status_code}: {answer.text[:200]}")
    try:
      scores = answer.json()["scores"]
    except (ValueError, KeyError, TypeError) as error:
      raise ValueError(
        f"the answer is not of the form {{'scores': [...]}}: {answer.text[:200]}"
      ) from error
    if not isinstance(scores, list) or len(scores) != len(body["completions"]):
      size = len(scores) if isinstance(scores, list) else type(scores).__name__
      raise ValueError(f"{size} scores came back for {len(body['completions'])} completions")
    return scores


class _ServerBusy(Exception):
  """An answer that may be different next time."""


def _digest(row: dict[str, Any]) -> bytes:
  return hashlib.sha256(json.dumps(row, sort_keys=True, default=str).encode()).digest()


def _import_clients():
  try:
    import httpx
    import tenacity
  except ImportError as error:
    raise ImportError(
      "the remote reward needs httpx and tenacity; "
      "install them with: pip install 'tea-jax[rewards]'"
    ) from error
  return httpx, tenacity
