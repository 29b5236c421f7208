"""RolloutPool: a generator and a scorer as a search's source; rollouts are made once and kept."""

from __future__ import annotations

import itertools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from tea_jax.runtime import processes
from tea_jax.runtime.files import write_whole
from tea_jax.scaling.base import SearchResult
from tea_jax.scaling.generators import Completion, Generator, Request

Scorer = Callable[[Sequence[int], Sequence[str]], Any]
"""(indices of prompts, texts) -> rewards, NaN for "not scored"."""


class ScoredRollout(NamedTuple):
  """A completion and its reward."""

  completion: Completion
  reward: float


class RolloutPool:
  """Rollouts by (prompt, node): searches, budgets and repeated runs take the same ones.

  What is missing is generated and scored in parts; with a folder each part is a Parquet file that
  is written before the next is begun, so that an interrupted search loses one part at most.

  Several processes have one each and call them alike: all generate and score, the first one writes.
  """

  def __init__(
    self,
    generator: Generator,
    scorer: Scorer,
    num_prompts: int,
    *,
    state_length: int,
    folder: str | pathlib.Path | None = None,
    groups_per_part: int = 12,
    progress: Callable[[int], None] | None = None,
  ):
    """Args:
    generator: of completions.
    scorer: of whole answers.
    num_prompts: P.
    state_length: tokens of a state; a rollout without more of them cannot be extended.
    folder: of the parts; None keeps everything in memory.
    groups_per_part: groups generated, scored and stored together.
    progress: called with the number of new rollouts after each part.
    """
    if state_length < 1 or groups_per_part < 1:
      raise ValueError(
        f"state_length={state_length} and groups_per_part={groups_per_part} must be at least 1"
      )
    self._generator, self._scorer, self._num_prompts = generator, scorer, num_prompts
    self._state_length, self._groups_per_part = state_length, groups_per_part
    self._progress = progress
    self._folder = None if folder is None else pathlib.Path(folder)
    self._groups: dict[tuple[int, int, int], list[ScoredRollout]] = {}
    self._parts = 0
    if self._folder is not None:
      with processes.together():
        self._load(processes.on_first(self._stored_parts))

  @property
  def num_prompts(self) -> int:
    return self._num_prompts

  def draw(
    self,
    nodes: Int[np.ndarray, "P S"],
    first: Int[np.ndarray, "P S"],
    counts: Int[np.ndarray, "P S"],
  ) -> Float[np.ndarray, "P S max_count"]:
    """See `RolloutSource.draw`."""
    size = self._generator.group_size
    missing = []
    for (prompt, slot), node in np.ndenumerate(nodes):
      start, count = int(first[prompt, slot]), int(counts[prompt, slot])
      for group in range(start // size, -(-(start + count) // size) if count else 0):
        if (prompt, int(node), group) not in self._groups:
          prefix = self._prefix(prompt, int(node))
          missing.append(Request(prompt, int(node), prefix, group))
    for begin in range(0, len(missing), self._groups_per_part):
      self._make(missing[begin : begin + self._groups_per_part])
    rewards = np.full((*nodes.shape, int(counts.max(initial=0))), np.nan)
    for (prompt, slot), node in np.ndenumerate(nodes):
      for offset in range(int(counts[prompt, slot])):
        number = int(first[prompt, slot]) + offset
        rewards[prompt, slot, offset] = self.rollout(prompt, int(node), number).reward
    return rewards

  def extendable(self, num_rollouts: int) -> Bool[np.ndarray, "P num_rollouts"]:
    """Which of the first rollouts of the prompts have more tokens than a state."""
    return np.array(
      [
        [
          len(self.rollout(prompt, 0, number).completion.tokens) > self._state_length
          for number in range(num_rollouts)
        ]
        for prompt in range(self._num_prompts)
      ]
    )

  def rollout(self, prompt: int, node: int, number: int) -> ScoredRollout:
    """A rollout that was drawn before."""
    group, place = divmod(number, self._generator.group_size)
    return self._groups[prompt, node, group][place]

  def answers(self, result: SearchResult) -> list[ScoredRollout | None]:
    """The best rollout of each prompt of a search; None where none could be scored."""
    return [
      None
      if best < 0
      else self.rollout(p, int(result.nodes[p, best]), int(result.rollouts[p, best]))
      for p, best in enumerate(result.best)
    ]

  def generated_tokens(self, result: SearchResult) -> Int[np.ndarray, "P N"]:
    """Tokens that each rollout of a search took: a state's own are not generated again."""
    return np.array(
      [
        [
          len(self.rollout(p, int(node), int(number)).completion.tokens)
          - (self._state_length if node else 0)
          for node, number in zip(nodes, numbers, strict=True)
        ]
        for p, (nodes, numbers) in enumerate(zip(result.nodes, result.rollouts, strict=True))
      ]
    )

  def _prefix(self, prompt: int, node: int) -> tuple[Any, ...]:
    if node == 0:
      return ()
    return self.rollout(prompt, 0, node - 1).completion.tokens[: self._state_length]

  def _make(self, requests: list[Request]) -> None:
    processes.check_stop()
    groups = self._generator(requests)
    sizes = {len(group) for group in groups}
    if len(groups) != len(requests) or sizes != {self._generator.group_size}:
      raise ValueError(
        f"the generator gave {len(groups)} groups of {sorted(sizes)} completions for "
        f"{len(requests)} requests of {self._generator.group_size}"
      )
    prompts = [request.prompt for request, group in zip(requests, groups) for _ in group]
    texts = [completion.text for group in groups for completion in group]
    rewards = np.asarray(self._scorer(prompts, texts), np.float64)
    if rewards.shape != (len(texts),):
      raise ValueError(f"the scorer gave rewards of shape {rewards.shape} for {len(texts)} texts")
    values = iter(rewards.tolist())
    for request, group in zip(requests, groups):
      self._groups[request.prompt, request.node, request.group] = [
        ScoredRollout(completion, next(values)) for completion in group
      ]
    if self._folder is not None:
      processes.on_first(self._store, requests)
      self._parts += 1
    if self._progress is not None:
      self._progress(len(texts))

  def _part(self, number: int) -> pathlib.Path:
    assert self._folder is not None
    return self._folder / f"part-{number:05d}.parquet"

  def _store(self, requests: list[Request]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
      {
        "prompt": request.prompt,
        "node": request.node,
        "group": request.group,
        "text": rollout.completion.text,
        "tokens": list(rollout.completion.tokens),
        "finished": rollout.completion.finished,
        "reward": rollout.reward,
      }
      for request in requests
      for rollout in self._groups[request.prompt, request.node, request.group]
    ]
    table = pa.Table.from_pylist(rows)
    write_whole(self._part(self._parts), lambda temporary: pq.write_table(table, temporary))

  def _stored_parts(self) -> int:
    assert self._folder is not None
    self._folder.mkdir(parents=True, exist_ok=True)
    return next(number for number in itertools.count() if not self._part(number).exists())

  def _load(self, parts: int) -> None:
    import pyarrow.parquet as pq

    while self._parts < parts:
      for row in pq.read_table(self._part(self._parts)).to_pylist():
        completion = Completion(row["text"], tuple(row["tokens"]), row["finished"])
        group = self._groups.setdefault((row["prompt"], row["node"], row["group"]), [])
        group.append(ScoredRollout(completion, row["reward"]))
      self._parts += 1
