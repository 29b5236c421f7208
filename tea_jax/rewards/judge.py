"""Judges that compare two answers: a language model behind a chat endpoint, or a policy of ours.

A judge is a function of messages, one reply each. Every pair of answers is judged in both orders,
since judges prefer a place; how the verdicts are counted is `evaluation.judgement`'s.
"""

from __future__ import annotations

import dataclasses
import importlib.resources
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tea_jax.models.policy import Policy
from tea_jax.runtime.http_client import (
  ServerBusy,
  check_address,
  filled_header,
  import_clients,
  retrying,
)
from tea_jax.runtime.secrets import printable, public_text, public_url

Verdict = Literal["first", "second", "tie", "refused", "unreadable"]

_CLIENTS = "a judge behind HTTP"
PLACEHOLDERS = ("prompt", "first", "second")
_LETTERS: dict[str, Verdict] = {"A": "first", "B": "second", "C": "tie"}
_MARKED = re.compile(r"\[\[\s*([ABC])\s*\]\]", re.IGNORECASE)
_ALONE = re.compile(r"\W*(?:answer|verdict)?\W*([ABC])\W*", re.IGNORECASE)
_REFUSAL = re.compile(r"\b(?:can(?:no|')t|can’t|unable to|won't|will not|sorry)\b", re.IGNORECASE)


class Reply(NamedTuple):
  """What a judge said.

  Attributes:
    text: of the reply.
    refused: True if the server itself marks it as a refusal.
  """

  text: str
  refused: bool = False


Judge = Callable[[Sequence[str]], list[Reply]]


def judge_template(path: str | pathlib.Path | None = None) -> str:
  """The message that asks for a verdict, with `{prompt}`, `{first}` and `{second}` in it.

  Args:
    path: of a UTF-8 file; None for the one that comes with the package.

  Raises:
    ValueError: if a placeholder is missing.
  """
  if path is None:
    file = importlib.resources.files("tea_jax.rewards") / "judge_prompt.txt"
    template = file.read_text(encoding="utf-8")
  else:
    template = pathlib.Path(path).read_text(encoding="utf-8")
  missing = [name for name in PLACEHOLDERS if f"{{{name}}}" not in template]
  if missing:
    raise ValueError(f"{path} lacks {{{missing[0]}}}; a judge's prompt needs {PLACEHOLDERS}")
  return template


def judge_message(template: str, prompt: str, first: str, second: str) -> str:
  """The template filled in; what stands in braces inside the texts stays as it is."""
  values = {"prompt": prompt, "first": first, "second": second}
  return re.sub(r"\{(prompt|first|second)\}", lambda match: values[match[1]], template)


def read_verdict(reply: Reply) -> Verdict:
  """The verdict of a reply: the last [[A]], [[B]] or [[C]], or a reply that is one letter."""
  if reply.refused:
    return "refused"
  marked = _MARKED.findall(reply.text)
  if marked:
    return _LETTERS[marked[-1].upper()]
  alone = _ALONE.fullmatch(reply.text.strip())
  if alone:
    return _LETTERS[alone[1].upper()]
  return "refused" if _REFUSAL.search(reply.text) else "unreadable"


@dataclasses.dataclass(frozen=True)
class ChatJudge:
  """A model behind an OpenAI-compatible chat endpoint: OpenAI, vLLM, SGLang, llama.cpp, Ollama.

  Connection failures, time-outs, 429 and 5xx answers are retried with growing pauses; another
  error status fails with what the server said.

  Attributes:
    url: base of the API, e.g. http://localhost:8000/v1.
    model: name that the server knows.
    headers: sent with each request; `${NAME}` is replaced by the environment variable NAME, as in
      {"Authorization": "Bearer ${OPENAI_API_KEY}"}.
    max_tokens: of a reply.
    temperature: 0 for the most likely reply.
    concurrency: requests at the same time.
    timeout: seconds for one request.
    attempts: requests made for a message before giving up.
    first_pause: seconds before the second attempt; doubled for each further one, up to 30.
  """

  url: str
  model: str
  headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
  max_tokens: int = 512
  temperature: float = 0.0
  concurrency: int = 4
  timeout: float = 120.0
  attempts: int = 5
  first_pause: float = 1.0

  def __post_init__(self):
    check_address(self.url)
    for name in ("max_tokens", "concurrency", "attempts"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
    import_clients(_CLIENTS)

  @property
  def name(self) -> str:
    """What identifies the judge in stored verdicts; no secrets."""
    return f"{self.model} at {public_url(self.url)}, temperature {self.temperature:g}"

  def __call__(self, messages: Sequence[str]) -> list[Reply]:
    httpx, _ = import_clients(_CLIENTS)
    headers = {name: filled_header(name, value) for name, value in self.headers.items()}
    again = retrying(_CLIENTS, attempts=self.attempts, first_pause=self.first_pause)
    with (
      httpx.Client(timeout=self.timeout, headers=headers) as client,
      ThreadPoolExecutor(self.concurrency) as threads,
    ):
      return list(threads.map(lambda message: again(self._ask, client, message), messages))

  def _ask(self, client: Any, message: str) -> Reply:
    body = {
      "model": self.model,
      "messages": [{"role": "user", "content": message}],
      "max_tokens": self.max_tokens,
      "temperature": self.temperature,
    }
    answer = client.post(f"{self.url.rstrip('/')}/chat/completions", json=body)
    said = printable(public_text(answer.text[:200]))
    if answer.status_code == 429 or answer.status_code >= 500:
      raise ServerBusy(f"status {answer.status_code}: {said}")
    if answer.status_code != 200:
      raise ValueError(f"{public_url(self.url)} answered {answer.status_code}: {said}")
    try:
      choice = answer.json()["choices"][0]
      text, refusal = choice["message"].get("content"), choice["message"].get("refusal")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
      raise ValueError(f"{public_url(self.url)} gave no chat completion: {said}") from error
    refused = bool(refusal) or choice.get("finish_reason") == "content_filter"
    return Reply(text or refusal or "", refused)


class PolicyJudge:
  """A policy of ours: the most likely of [[A]], [[B]], [[C]] after the message, no explanation.

  Args:
    policy: with a tokenizer; its chat template is used where it has one.
    name: what identifies it in stored verdicts.
    bucket: lengths are padded to a multiple of this, one compilation each.
  """

  def __init__(self, policy: Policy, name: str, *, bucket: int = 64):
    self._policy, self.name, self._bucket = policy, name, bucket
    letters = [policy.tokenizer.encode(x, add_special_tokens=False)[-1] for x in _LETTERS]
    self._letters = jnp.asarray(letters)
    self._scores = jax.jit(self._letter_scores)

  def __call__(self, messages: Sequence[str]) -> list[Reply]:
    return [self._reply(message) for message in messages]

  def _reply(self, message: str) -> Reply:
    tokenizer = self._policy.tokenizer
    chat = getattr(tokenizer, "chat_template", None) is not None
    if chat:
      turn = [{"role": "user", "content": message}]
      message = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    tokens = tokenizer.encode(f"{message}[[", add_special_tokens=not chat)
    row = np.zeros((1, -len(tokens) % self._bucket + len(tokens)), np.int32)
    row[0, : len(tokens)] = tokens
    scores = self._scores(self._policy.params, row, np.array([len(tokens)], np.int32))
    return Reply(f"[[{list(_LETTERS)[int(np.argmax(scores))]}]]")

  def _letter_scores(self, params: Any, tokens: jax.Array, lengths: jax.Array) -> jax.Array:
    hidden = self._policy.hidden_states(params, tokens, lengths)
    return self._policy.logits(params, hidden[0, lengths[0] - 1])[self._letters]
