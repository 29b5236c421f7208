"""Evaluates a policy: n completions of every prompt, scored, stored as records, resumable.

The sampler is a function of prompt indices, so that anything can be evaluated: a rollout engine
(`engine_sampler`), a remote model, a table of texts.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from tea_jax.data import EncodedPrompts, Prompt, column_names, columns_digest, reward_inputs
from tea_jax.evaluation.records import RecordFolder, Records, Samples, read_records
from tea_jax.evaluation.sampling import completion_texts, sample_calls
from tea_jax.evaluation.shares import shared_scores
from tea_jax.rewards import RewardError, RewardFunction, call_reward, reward_name
from tea_jax.rewards.failed_call import write_failed_call
from tea_jax.rewards.signature import check_arguments
from tea_jax.rollout.engine import RolloutEngine
from tea_jax.runtime import processes
from tea_jax.runtime.code_identity import code_identity
from tea_jax.scaling.generators import Generator, Request

Sampler = Callable[[Sequence[int]], Samples]

_ROWS = 128


def evaluate_policy(
  sampler: Sampler,
  prompts: Sequence[Prompt],
  reward: RewardFunction,
  *,
  folder: str | os.PathLike[str],
  num_samples: int,
  spec: Mapping[str, Any] | None = None,
  prompts_per_part: int = 8,
  progress: Callable[[int, int], None] | None = None,
) -> Records:
  """Samples, scores and stores; calling it again goes on where it was interrupted.

  Several processes call it alike: all sample, the first one writes, and scores are made as in
  training, see `shares`. Only the first one touches the folder before all is stored.

  Args:
    sampler: `indices of prompts -> Samples` with `num_samples` completions of each. It must give
      the same completions for a prompt whatever else is in the call.
    prompts: held-out prompts.
    reward: called through `call_reward` with the prompts' columns.
    folder: of the records.
    num_samples: n.
    spec: what else identifies the evaluation, see `identity.evaluation_spec`; JSON.
    prompts_per_part: prompts sampled, scored and stored together.
    progress: called with the prompts done and their total.

  Returns:
    The records of all prompts.

  Raises:
    RewardError: naming prompt and rollout; the completions stay in the folder, and the next call
      only scores them.
    ValueError: the folder holds another evaluation, or the sampler broke its promise.
  """
  if num_samples < 1 or prompts_per_part < 1 or not prompts:
    raise ValueError(
      f"an evaluation needs prompts ({len(prompts)} given), num_samples={num_samples} >= 1 "
      f"and prompts_per_part={prompts_per_part} >= 1"
    )
  check_arguments(reward, column_names(prompts))
  spec = {
    **(spec or {}),
    "reward": reward_name(reward),
    "reward_code": code_identity(reward),
    "columns": columns_digest(prompts),
    "num_prompts": len(prompts),
    "num_samples": num_samples,
    "prompts_per_part": prompts_per_part,
    "prompts": _prompts_digest(prompts),
  }
  with processes.together():
    processes.require_same(spec, "the evaluation")
    records = RecordFolder(folder, spec)
    for number, first in enumerate(range(0, len(prompts), prompts_per_part)):
      processes.check_stop()
      indices = range(first, min(first + prompts_per_part, len(prompts)))
      ids, texts = [prompts[i].id for i in indices], [prompts[i].text for i in indices]
      if not processes.on_first(records.is_done, number, ids, texts):
        _evaluate_part(sampler, prompts, reward, records, number, indices, num_samples)
      if progress is not None:
        progress(indices.stop, len(prompts))
    return read_records(folder)


def prompts_of_a_call(num_prompts: int, *, prompts_per_step: int, num_rollouts: int) -> int:
  """Prompts that one call of an evaluation samples: what a training step does, or up to 128 rows.

  A step may sample fewer rows than the processor can feed; one more compilation pays off. Groups
  keep the size they have in training, and so a prompt its random keys.

  Args:
    num_prompts: evaluated in all.
    prompts_per_step, num_rollouts: P and m of a training step.
  """
  enough = min(_ROWS // num_rollouts, num_prompts)
  return max(prompts_per_step, enough)


def engine_sampler(
  engine: RolloutEngine,
  params: Any,
  encoded: EncodedPrompts,
  *,
  key: jax.Array,
  num_samples: int,
  prompts_per_call: int | None = None,
  rollouts_per_call: int | None = None,
) -> Sampler:
  """A sampler that generates with a rollout engine.

  Keys are folded with the prompt's id, so policies evaluated with the same key share their random
  numbers and a prompt's completions do not depend on the part it is in.

  Args:
    engine, params: the policy.
    encoded: the evaluated prompts with their tokens.
    key: of the evaluation.
    num_samples: n.
    prompts_per_call, rollouts_per_call: shape of the engine's calls, filled up with repeated
      prompts: with training's own P and m nothing compiles again. By default one call a part.
  """
  several = (rollouts_per_call or num_samples) < num_samples

  def sample(indices: Sequence[int]) -> Samples:
    shape = (len(indices), num_samples)
    lengths, finished = np.empty(shape, np.int32), np.empty(shape, bool)
    texts: list[list[str]] = [[] for _ in indices]
    place = {index: row for row, index in enumerate(indices)}
    for call in sample_calls(
      engine,
      params,
      encoded.tokens,
      [prompt.id for prompt in encoded.prompts],
      key_of_part=lambda part: jax.random.fold_in(key, part) if several else key,
      num_samples=num_samples,
      rollouts_per_call=rollouts_per_call or num_samples,
      prompts_per_call=prompts_per_call or len(indices),
      prompts=indices,
    ):
      rows = [place[index] for index in call.prompts.tolist()]
      kept = call.samples.stop - call.samples.start
      lengths[rows, call.samples] = np.asarray(call.rollouts.completion_lengths)[:, :kept]
      finished[rows, call.samples] = np.asarray(call.rollouts.finished)[:, :kept]
      found = completion_texts(
        call.rollouts.completion_tokens, call.rollouts.completion_lengths, engine.policy.tokenizer
      )
      for row, texts_of_row in zip(rows, found, strict=True):
        texts[row] += texts_of_row[:kept]
    return Samples(texts, lengths, finished)

  return sample


def generator_sampler(generator: Generator, num_samples: int) -> Sampler:
  """A sampler that takes whole groups from a generator, such as a completions server.

  Args:
    generator: of completions; its prompts are those of the evaluation.
    num_samples: n.
  """
  groups = -(-num_samples // generator.group_size)

  def sample(indices: Sequence[int]) -> Samples:
    requests = [Request(int(i), 0, (), group) for i in indices for group in range(groups)]
    answers = generator(requests)
    rows = [
      [answer for group in answers[start : start + groups] for answer in group][:num_samples]
      for start in range(0, len(answers), groups)
    ]
    return Samples(
      [[answer.text for answer in row] for row in rows],
      np.array([[len(answer.tokens) for answer in row] for row in rows]),
      np.array([[answer.finished for answer in row] for row in rows]),
    )

  return sample


def _evaluate_part(
  sampler: Sampler,
  prompts: Sequence[Prompt],
  reward: RewardFunction,
  records: RecordFolder,
  number: int,
  indices: range,
  num_samples: int,
) -> None:
  chosen = [prompts[index] for index in indices]
  ids, texts = [prompt.id for prompt in chosen], [prompt.text for prompt in chosen]
  stored = processes.on_first(records.load_unscored, number, ids, texts)
  if stored is None:
    samples = sampler(indices)
    _check_samples(samples, len(chosen), num_samples)
    processes.on_first(records.save_unscored, number, indices.start, ids, texts, samples)
  else:
    completions, lengths, finished = stored
    samples = Samples(completions, np.asarray(lengths), np.asarray(finished))
  repeated, columns = reward_inputs(chosen, num_samples, columns=column_names(prompts))
  completions = [text for row in samples.completions for text in row]

  def score(first: int, stop: int) -> np.ndarray:
    rows = slice(first * num_samples, stop * num_samples)
    own = {name: values[rows] for name, values in columns.items()}
    return call_reward(reward, repeated[rows], completions[rows], own, num_rollouts=num_samples)

  def score_all() -> np.ndarray:
    try:
      return score(0, len(chosen))
    except RewardError as error:
      write_failed_call(records.failed(number), repeated, completions, error)
      message = (
        f"{error} (prompts are counted from {indices.start}; the completions are kept in "
        f"{records.unscored(number)}, and evaluating again only scores them; scores that were "
        f"there are in {records.failed(number)})"
      )
      error.args = (message,)
      raise

  scores = shared_scores(reward, len(chosen), score, score_all).reshape(len(chosen), num_samples)
  processes.on_first(records.save, number, indices.start, ids, texts, samples, scores)


def _check_samples(samples: Samples, num_prompts: int, num_samples: int) -> None:
  shape = (num_prompts, num_samples)
  sizes = [len(row) for row in samples.completions]
  if sizes != [num_samples] * num_prompts:
    raise ValueError(
      f"the sampler gave {sizes} completions for {num_prompts} prompts; "
      f"{num_samples} each were asked for"
    )
  if np.shape(samples.lengths) != shape or np.shape(samples.finished) != shape:
    raise ValueError(
      f"the sampler's lengths {np.shape(samples.lengths)} and finished "
      f"{np.shape(samples.finished)} must have the shape {shape}"
    )


def _prompts_digest(prompts: Sequence[Prompt]) -> str:
  digest = hashlib.blake2b(digest_size=8)
  for prompt in prompts:
    digest.update(f"{prompt.id}\x00{prompt.text}\x01".encode())
  return digest.hexdigest()
