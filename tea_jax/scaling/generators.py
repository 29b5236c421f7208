"""Generators: what continues a prompt and a partial answer, for searches and evaluations.

A generator is asked for groups: group g of a node is always the same rollouts, so that searches and
budgets share them and interrupted work finds them again.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Array


class Engine(Protocol):
  """What is used of `rollout.RolloutEngine`."""

  policy: Any

  def generate(
    self,
    params: Any,
    prompts: Sequence[Sequence[int]],
    *,
    key: Array,
    num_rollouts: int,
    prompt_ids: Sequence[int] | None = None,
  ) -> Any:
    """`Rollouts` of every prompt."""
    ...


class Request(NamedTuple):
  """One group of rollouts.

  Attributes:
    prompt: index of the prompt.
    node: 0 for the prompt itself, or the number of a state; tells equal prefixes apart.
    prefix: the state's tokens, as a completion of this generator gave them.
    group: number of the group within the node.
  """

  prompt: int
  node: int
  prefix: tuple[Any, ...]
  group: int


class Completion(NamedTuple):
  """A whole answer.

  Attributes:
    text: prefix and continuation.
    tokens: of both: ids, or the server's strings.
    finished: False where it was cut at the maximum length.
  """

  text: str
  tokens: tuple[Any, ...]
  finished: bool


class Generator(Protocol):
  """Continues prompts; calls with equal requests give equal completions where it can be had.

  Attributes:
    group_size: completions of a group.
  """

  group_size: int

  def __call__(self, requests: Sequence[Request]) -> list[list[Completion]]:
    """`group_size` completions of each request."""
    ...


class EngineGenerator:
  """Groups from the rollout engine: a node's prefix is prefilled once for each group."""

  def __init__(
    self,
    engine: Callable[[int], Engine],
    params: Any,
    prompts: Sequence[Sequence[int]],
    *,
    key: Array,
    max_length: int,
    prompt_ids: Sequence[int] | None = None,
    group_size: int = 8,
    rows_per_call: int = 96,
  ):
    """Args:
    engine: makes the engine for a maximum completion length.
    params: weights to sample with.
    prompts: token ids of each prompt.
    key: typed PRNG key of all groups.
    max_length: of an answer in tokens, its prefix counted.
    prompt_ids: number of each prompt, part of its keys; its place by default.
    group_size: rollouts of a group; requests are rounded up to whole groups.
    rows_per_call: rollouts decoded together.
    """
    if group_size < 1 or rows_per_call < group_size:
      raise ValueError(
        f"group_size={group_size} must be at least 1 and at most rows_per_call={rows_per_call}"
      )
    self.group_size = group_size
    self._engine = functools.cache(engine)
    self._params, self._prompts, self._key = params, prompts, key
    self._max_length = max_length
    self._ids = list(range(len(prompts))) if prompt_ids is None else list(prompt_ids)
    self._groups_per_call = rows_per_call // group_size

  def __call__(self, requests: Sequence[Request]) -> list[list[Completion]]:
    found: dict[int, list[Completion]] = {}
    for length in sorted({len(request.prefix) for request in requests}):
      if length >= self._max_length:
        raise ValueError(
          f"a prefix of {length} tokens leaves nothing of max_length={self._max_length}"
        )
      places = [i for i, request in enumerate(requests) if len(request.prefix) == length]
      for start in range(0, len(places), self._groups_per_call):
        part = places[start : start + self._groups_per_call]
        completions = self._generate([requests[i] for i in part], self._max_length - length)
        found.update(zip(part, completions, strict=True))
    return [found[i] for i in range(len(requests))]

  def _generate(self, requests: list[Request], length: int) -> list[list[Completion]]:
    engine = self._engine(length)
    rollouts = engine.generate(
      self._params,
      [[*self._prompts[request.prompt], *request.prefix] for request in requests],
      key=self._key,
      num_rollouts=self.group_size,
      prompt_ids=[stable_id(self._ids[r.prompt], r.node, r.prefix, r.group) for r in requests],
    )
    tokens = np.asarray(rollouts.completion_tokens)
    lengths, finished = np.asarray(rollouts.completion_lengths), np.asarray(rollouts.finished)
    decode = engine.policy.tokenizer.batch_decode
    groups = []
    for row, request in enumerate(requests):
      answers = [
        (*request.prefix, *tokens[row, i, : lengths[row, i]].tolist())
        for i in range(self.group_size)
      ]
      texts = decode([list(answer) for answer in answers], skip_special_tokens=True)
      groups.append(
        [
          Completion(text, answer, bool(done))
          for text, answer, done in zip(texts, answers, finished[row], strict=True)
        ]
      )
    return groups


def stable_id(*parts: Any) -> int:
  """A 31-bit number of the parts, the same in every process."""
  digest = hashlib.blake2b(repr(parts).encode(), digest_size=4).digest()
  return int.from_bytes(digest, "big") >> 1
