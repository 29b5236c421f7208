"""Groups from an OpenAI-compatible completions server: vLLM, SGLang, llama.cpp."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from tea_jax.runtime import processes
from tea_jax.runtime.completions_client import CompletionsClient
from tea_jax.scaling.generators import Completion, Request, stable_id

_WORD = re.compile(r"\s*\S+|\s+$")


class CompletionsServer:
  """A `Generator` that asks `POST {url}/v1/completions`, several requests at a time.

  A state is continued by sending the prompt and its text. The server's tokens are asked for
  (`logprobs`) and cut states exactly; where it gives none, or tokens that are not the text, words
  take their place. Connection failures, time-outs, 429 and 5xx are retried with growing pauses; any
  other error status fails at once with what the server said. Groups that arrived before a failure
  are kept: calling again asks for the rest. A server that ignores `n` is asked until they are full.
  Of several processes the first one asks, and tells the others.
  """

  def __init__(
    self,
    url: str,
    prompts: Sequence[str],
    *,
    max_length: int,
    model: str = "",
    prompt_ids: Sequence[int] | None = None,
    group_size: int = 8,
    temperature: float = 1.0,
    top_p: float = 1.0,
    stop: Sequence[str] = (),
    seed: int = 0,
    timeout: float = 300.0,
    attempts: int = 5,
    first_pause: float = 1.0,
    longest_pause: float = 30.0,
    concurrency: int = 8,
    headers: Mapping[str, str] | None = None,
  ):
    """Args:
    url: of the server, http or https, with or without /v1/completions.
    prompts: texts, under the model's template where it has one.
    max_length: of an answer in tokens, its prefix counted.
    model: name that the server knows it by; left out if empty.
    prompt_ids: number of each prompt, part of its seeds; its place by default.
    group_size: completions of a request, n.
    temperature, top_p, stop: of the sampling.
    seed: of all groups; the server's repeatability is its own.
    timeout: seconds for one request.
    attempts: requests made for a group before giving up.
    first_pause, longest_pause: seconds before the second attempt, doubling up to the longest.
    concurrency: requests at the same time.
    headers: sent with each request; `${NAME}` is replaced by the environment variable NAME.
    """
    least = {"group_size": group_size, "concurrency": concurrency, "max_length": max_length}
    for option, value in least.items():
      if value < 1:
        raise ValueError(f"{option}={value} must be at least 1")
    self._client = CompletionsClient(
      url,
      timeout=timeout,
      attempts=attempts,
      first_pause=first_pause,
      longest_pause=longest_pause,
      headers=headers,
    )
    self.group_size = group_size
    self._prompts, self._max_length = list(prompts), max_length
    self._ids = list(range(len(prompts))) if prompt_ids is None else list(prompt_ids)
    self._seed, self._concurrency = seed, concurrency
    self._options: dict[str, Any] = {"temperature": temperature, "top_p": top_p, "logprobs": 1}
    self._options |= {"model": model} if model else {}
    self._options |= {"stop": list(stop)} if stop else {}
    self._arrived: dict[Request, list[Completion]] = {}

  def __call__(self, requests: Sequence[Request]) -> list[list[Completion]]:
    found = processes.on_first(self._groups, requests)
    if not processes.several():
      return found
    return [[Completion(text, tuple(tokens), done) for text, tokens, done in g] for g in found]

  def _groups(self, requests: Sequence[Request]) -> list[list[Completion]]:
    def fetch(request: Request) -> None:
      self._arrived[request] = self._group(request)

    threads = ThreadPoolExecutor(self._concurrency)
    missing = [request for request in dict.fromkeys(requests) if request not in self._arrived]
    try:
      for done in as_completed([threads.submit(fetch, request) for request in missing]):
        done.result()
    finally:
      # After a group that failed for good, or a stop, the waiting ones are not sent.
      threads.shutdown(cancel_futures=True)
    groups = [self._arrived[request] for request in requests]
    self._arrived.clear()
    return groups

  def close(self) -> None:
    """Closes the connections."""
    self._client.close()

  def _group(self, request: Request) -> list[Completion]:
    length = self._max_length - len(request.prefix)
    if length < 1:
      raise ValueError(
        f"a prefix of {len(request.prefix)} tokens leaves nothing of max_length={self._max_length}"
      )
    prefix = "".join(request.prefix)
    ids = (self._seed, self._ids[request.prompt], request.node, request.prefix, request.group)
    found: list[Completion] = []
    while len(found) < self.group_size:
      body = self._options | {
        "prompt": self._prompts[request.prompt] + prefix,
        "n": self.group_size - len(found),
        "max_tokens": length,
        "seed": stable_id(*ids, len(found)),
      }
      choices = self._client.choices(body, f"prompt {request.prompt}")
      found += [_completion(choice, request.prefix) for choice in choices[: body["n"]]]
    return found


def _completion(choice: dict[str, Any], prefix: tuple[str, ...]) -> Completion:
  text = choice["text"]
  logprobs = choice.get("logprobs")
  tokens = logprobs.get("tokens") if isinstance(logprobs, dict) else None
  if not isinstance(tokens, list) or "".join(map(str, tokens)) != text:
    tokens = _WORD.findall(text)
  finished = choice.get("finish_reason") != "length"
  return Completion("".join(prefix) + text, (*prefix, *tokens), finished)
