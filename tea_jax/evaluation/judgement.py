"""Is a higher reward a better answer? A judge compares what two policies would deploy.

Each policy answers a prompt by the best of N of its samples, by reward. A judge reads every pair of
answers in both orders; a verdict counts if both orders agree, and a pair on which they don't is a
tie. Every reply is stored (Parquet), and the same call again goes on where it was.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from tea_jax.evaluation.bootstrap import Interval, prompt_bootstrap
from tea_jax.evaluation.records import Records, check_spec
from tea_jax.rewards.judge import Judge, judge_message, read_verdict
from tea_jax.runtime.extras import extra
from tea_jax.runtime.files import write_whole

with extra("train", "storing verdicts"):
  import pyarrow as pa
  import pyarrow.parquet as pq

READABLE = ("first", "second", "tie")


class Pair(NamedTuple):
  """Two answers to one prompt.

  Attributes:
    prompt_index: of the prompt in the records.
    prompt: its text.
    answers: of the policy and of its baseline.
  """

  prompt_index: int
  prompt: str
  answers: tuple[str, str]


@dataclasses.dataclass(frozen=True)
class Judgement:
  """What a judge made of the pairs of two policies.

  Attributes:
    win_rate: of the policy against its baseline over prompts, ties one half; None if no pair got
      two readable verdicts.
    wins, ties, losses: pairs on which both orders agree.
    inconsistent: pairs on which they don't; they count one half in the win rate.
    left_out: pairs with a refused or unreadable verdict, which do not count.
    refused, unreadable: replies.
    first_share: of the verdicts for a place, those for the first; 0.5 without position bias, None
      if there are none.
  """

  win_rate: Interval | None
  wins: int
  ties: int
  losses: int
  inconsistent: int
  left_out: int
  refused: int
  unreadable: int
  first_share: float | None

  @property
  def is_position_biased(self) -> bool:
    """Whether the place decided more of the verdicts than the answers did."""
    return self.inconsistent > self.wins + self.losses + self.ties


def selected_answers(records: Records, budget: int) -> Int[np.ndarray, "P groups"]:
  """Rollout with the largest reward of each consecutive group of `budget`; -1 if none is scored.

  Raises:
    ValueError: if the budget is not between 1 and the number of samples.
  """
  num_prompts, num_samples = records.rewards.shape
  if not 1 <= budget <= num_samples:
    raise ValueError(f"budget={budget} must be between 1 and the {num_samples} samples of a prompt")
  groups = num_samples // budget
  rewards = records.rewards[:, : groups * budget].reshape(num_prompts, groups, budget)
  best = np.where(np.isnan(rewards), -np.inf, rewards).argmax(-1) + budget * np.arange(groups)
  return np.where(np.isnan(rewards).all(-1), -1, best)


def answer_pairs(
  policy: Records, baseline: Records, *, budget: int, pairs_per_prompt: int = 1
) -> list[Pair]:
  """Best-of-N answers of two policies to the same prompts, side by side.

  Args:
    policy, baseline: records over the same prompts.
    budget: N, samples from which each answer is selected.
    pairs_per_prompt: at most so many groups of N of each prompt.

  Raises:
    ValueError: if the prompts differ.
  """
  if policy.prompts != baseline.prompts:
    raise ValueError("the two policies were evaluated on different prompts; evaluate them together")
  chosen = [selected_answers(records, budget) for records in (policy, baseline)]
  pairs = []
  for index, prompt in enumerate(policy.prompts):
    places = list(zip(chosen[0][index], chosen[1][index], strict=False))[:pairs_per_prompt]
    for first, second in places:
      if first >= 0 and second >= 0:
        texts = (
          policy.samples.completions[index][first],
          baseline.samples.completions[index][second],
        )
        pairs.append(Pair(index, prompt, texts))
  return pairs


def judge_pairs(
  judge: Judge,
  pairs: Sequence[Pair],
  template: str,
  *,
  folder: str | os.PathLike[str],
  name: str,
  pairs_per_part: int = 16,
  progress: Callable[[int, int], None] | None = None,
) -> pa.Table:
  """Asks the judge for both orders of every pair; stored replies are not asked for again.

  Args:
    judge: messages -> replies.
    pairs: to be compared.
    template: of the message, see `judge_template`.
    folder: of the verdicts.
    name: of the judge, part of what the folder is for.
    pairs_per_part: pairs asked for and stored together.
    progress: called with the pairs done and their total.

  Returns:
    A row a reply: pair, prompt_index, swapped (the baseline came first), prompt, first, second,
    reply, verdict.

  Raises:
    ValueError: if the folder holds the verdicts of another judge, prompt or set of pairs.
  """
  path = pathlib.Path(folder)
  spec = {"judge": name, "template": _digest([template]), "pairs": _digest(pairs)}
  check_spec(path, {**spec, "pairs_per_part": pairs_per_part})
  tables = []
  for number, start in enumerate(range(0, len(pairs), pairs_per_part)):
    file = path / f"part-{number:05d}.parquet"
    if not file.is_file():
      rows = _judged(judge, pairs[start : start + pairs_per_part], start, template)
      table = pa.Table.from_pylist(rows)
      write_whole(file, lambda temporary, table=table: pq.write_table(table, temporary))
    tables.append(pq.read_table(file))
    if progress is not None:
      progress(min(start + pairs_per_part, len(pairs)), len(pairs))
  return pa.concat_tables(tables)


def judgement(verdicts: pa.Table) -> Judgement:
  """Counts stored verdicts and makes the interval of the win rate over prompts."""
  rows = sorted(verdicts.to_pylist(), key=lambda row: (row["pair"], row["swapped"]))
  said = [row["verdict"] for row in rows]
  by_prompt: dict[int, list[float]] = {}
  counts = collections.Counter[str]()
  for straight, swapped in zip(rows[::2], rows[1::2], strict=True):
    outcome = _outcome(straight["verdict"], swapped["verdict"])
    counts[outcome] += 1
    value = {"wins": 1.0, "losses": 0.0, "left_out": None}.get(outcome, 0.5)
    if value is not None:
      by_prompt.setdefault(straight["prompt_index"], []).append(value)
  placed = said.count("first") + said.count("second")
  return Judgement(
    win_rate=prompt_bootstrap(np.array([np.mean(v) for v in by_prompt.values()]))
    if by_prompt
    else None,
    wins=counts["wins"],
    ties=counts["ties"],
    losses=counts["losses"],
    inconsistent=counts["inconsistent"],
    left_out=counts["left_out"],
    refused=said.count("refused"),
    unreadable=said.count("unreadable"),
    first_share=said.count("first") / placed if placed else None,
  )


def _outcome(straight: str, swapped: str) -> str:
  """Of the policy, from the verdicts with its answer first and with its answer second."""
  if straight not in READABLE or swapped not in READABLE:
    return "left_out"
  mirrored = {"first": "second", "second": "first", "tie": "tie"}[swapped]
  if straight != mirrored:
    return "inconsistent"
  return {"first": "wins", "second": "losses", "tie": "ties"}[straight]


def _judged(judge: Judge, pairs: Sequence[Pair], start: int, template: str) -> list[dict]:
  rows = [
    {
      "pair": start + offset,
      "prompt_index": pair.prompt_index,
      "swapped": swapped,
      "prompt": pair.prompt,
      "first": pair.answers[swapped],
      "second": pair.answers[not swapped],
    }
    for offset, pair in enumerate(pairs)
    for swapped in (False, True)
  ]
  messages = [judge_message(template, r["prompt"], r["first"], r["second"]) for r in rows]
  replies = judge(messages)
  if len(replies) != len(messages):
    raise ValueError(f"the judge gave {len(replies)} replies to {len(messages)} messages")
  return [
    {**row, "reply": reply.text, "verdict": read_verdict(reply)}
    for row, reply in zip(rows, replies, strict=True)
  ]


def _digest(values: Sequence) -> str:
  return hashlib.blake2b(repr(list(values)).encode(), digest_size=8).hexdigest()
