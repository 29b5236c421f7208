"""Scores of calls that have ended, made while the next one decodes.

A batch that does not fit into one call of the engine is sampled in several. Where the reward says
that rows stand alone (`row_wise`), a thread scores each call as it ends, so that verifiers and
reward servers work while the devices decode. Values are those of the whole batch; a reward model's
may differ in their last bits, since other rows meet in its batches.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

import numpy as np

from tea_jax.data import EncodedPrompts
from tea_jax.evaluation.scoring import Completions, Scorer, Scores, mean_metrics
from tea_jax.rewards import RewardError
from tea_jax.runtime import processes


class ScoringAhead:
  """The scores of one step, call by call; to be entered before it is sampled.

  Args:
    scorer: of the run.
    data, chosen, num_rollouts: what is sampled.
    step: of the run.
  """

  def __init__(
    self, scorer: Scorer, data: EncodedPrompts, chosen: np.ndarray, num_rollouts: int, *, step: int
  ):
    self._scorer, self._step = scorer, step
    self._data, self._chosen, self._shape = data, np.asarray(chosen), (len(chosen), num_rollouts)
    self._calls: list[tuple[tuple[slice, slice], Completions, Future[Any]]] = []
    wanted = scorer.row_wise and not processes.several()
    self._thread = ThreadPoolExecutor(1) if wanted else None

  def __enter__(self) -> ScoringAhead:
    return self

  def __exit__(
    self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
  ) -> None:
    del error, trace
    if self._thread is not None:
      # Where sampling failed nobody asks for scores.
      self._thread.shutdown(wait=False, cancel_futures=kind is not None)

  def add(self, prompts: slice, rollouts: slice, part: Mapping[str, np.ndarray]) -> None:
    """Takes a call that has ended; one that is the whole batch leaves nothing to do ahead.

    Args:
      prompts, rollouts: its place in the batch.
      part: fields of `Rollouts`, `[prompts, rollouts, ...]`.
    """
    tokens, lengths = part["completion_tokens"], part["completion_lengths"]
    if self._thread is None or lengths.shape == self._shape:
      return
    chosen = self._chosen[prompts]
    batch = self._scorer.completions(self._data, chosen, tokens, lengths, self._step)
    self._calls.append(((prompts, rollouts), batch, self._thread.submit(self._scorer.parts, batch)))

  def scores(self) -> Scores | None:
    """Those of the whole batch; None where it was one call, or one of them could not be scored.

    Then `Scorer` is to be asked: it says what was wrong, of the whole batch.
    """
    if not self._calls:
      return None
    try:
      found = [call.result() for _, _, call in self._calls]
    except RewardError:
      return None
    parts: dict[str, np.ndarray] = {name: np.zeros(self._shape) for name in found[0][0]}
    texts = np.empty(self._shape, object)
    for (place, batch, _), (scored, _) in zip(self._calls, found, strict=True):
      for name, values in scored.items():
        parts[name][place] = np.reshape(values, parts[name][place].shape)
      texts[place] = np.reshape(np.array(batch.texts, object), texts[place].shape)
    sizes = (len(batch.texts) for _, batch, _ in self._calls)
    metrics = mean_metrics(zip(sizes, (metrics for _, metrics in found), strict=True))
    return self._scorer.finished(
      {name: values.reshape(-1) for name, values in parts.items()}, metrics, texts
    )
