"""Completions and rewards on disk: what an evaluation leaves, and goes on from.

A folder of records holds `spec.json` (what was evaluated, and how) and `part-00000.parquet`, ...;
a part is the completions of some consecutive prompts. Interrupted work goes on with the first part
that is missing; a folder of another evaluation is refused.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from tea_jax.evaluation.record_parts import (
  Samples,
  check_table,
  make_table,
  read_table,
  samples_of,
  write_table,
)
from tea_jax.runtime import processes
from tea_jax.runtime.extras import extra
from tea_jax.runtime.files import read_json, write_text

with extra("train", "storing completions"):
  import pyarrow as pa

logger = logging.getLogger(__name__)

_SPEC = "spec.json"
# What a change of needs no new completions for, only new scores.
_SCORING = ("reward_code", "columns")


@dataclasses.dataclass(frozen=True)
class Records:
  """An evaluated policy.

  Attributes:
    prompts: P texts.
    prompt_ids: `[P]`.
    samples: the completions.
    rewards: `[P, n]` float64; NaN where the reward said "not scored".
    spec: what was evaluated, and how.
  """

  prompts: list[str]
  prompt_ids: Int[np.ndarray, "P"]
  samples: Samples
  rewards: Float[np.ndarray, "P n"]
  spec: Mapping[str, Any]

  @property
  def num_samples(self) -> int:
    return self.rewards.shape[1]

  @property
  def mean_length(self) -> float:
    """Mean length of the completions in tokens."""
    return float(self.samples.lengths.mean())

  def select(self, kept: Bool[np.ndarray, "P"]) -> Records:
    """The records of the chosen prompts."""
    samples = Samples(
      [row for row, keep in zip(self.samples.completions, kept, strict=True) if keep],
      self.samples.lengths[kept],
      self.samples.finished[kept],
    )
    prompts = [text for text, keep in zip(self.prompts, kept, strict=True) if keep]
    return Records(prompts, self.prompt_ids[kept], samples, self.rewards[kept], self.spec)


class RecordFolder:
  """Reads and writes the parts of one evaluation.

  Several processes open it together; only the first one may call the methods that read or write.
  """

  def __init__(self, folder: str | os.PathLike[str], spec: Mapping[str, Any]):
    """Opens a folder, or makes it.

    Args:
      folder: of the records.
      spec: JSON that identifies the evaluation: policy, reward, sampling, prompts.

    Raises:
      ValueError: the folder holds records of another spec (the differences are named).
    """
    self.path = pathlib.Path(folder)
    self.spec = json.loads(json.dumps(dict(spec)))
    processes.on_first(self._open)

  def _open(self) -> None:
    stored = read_spec(self.path)
    rescored = stored is not None and _same(stored, self.spec, but=_SCORING)
    if stored is not None and rescored and not _same(stored, self.spec):
      self._forget_scores()
    check_spec(self.path, self.spec)

  def _forget_scores(self) -> None:
    """Keeps the completions of all parts for another scoring: the reward or its data changed."""
    logger.warning(
      "%s: the reward's code or the data's columns changed; its completions are scored anew",
      self.path,
    )
    for file in sorted(self.path.glob("part-[0-9]*[0-9].parquet")):
      number = int(file.stem.removeprefix("part-"))
      write_table(self.unscored(number), read_table(file).drop_columns(["reward"]))
      file.unlink()
    (self.path / _SPEC).unlink()

  def part(self, number: int) -> pathlib.Path:
    """File of a scored part."""
    return self.path / f"part-{number:05d}.parquet"

  def unscored(self, number: int) -> pathlib.Path:
    """File of a part's completions while they have no rewards."""
    return self.path / f"part-{number:05d}.unscored.parquet"

  def failed(self, number: int) -> pathlib.Path:
    """File of the scores that a failing reward left of a part."""
    return self.path / f"part-{number:05d}.failed.jsonl"

  def is_done(self, number: int, ids: Sequence[int], prompts: Sequence[str]) -> bool:
    """True if the part is there and is what it should be.

    A damaged part is set aside, so that it is sampled again, and said so.

    Raises:
      ValueError: the part is whole, but of other prompts.
    """
    return self._checked(self.part(number), ids, prompts, scored=True) is not None

  def save_unscored(
    self, number: int, first: int, ids: Sequence[int], prompts: Sequence[str], samples: Samples
  ) -> None:
    """Writes completions before they are scored, so that a failing reward loses none."""
    write_table(self.unscored(number), make_table(first, ids, prompts, samples, None))

  def load_unscored(
    self, number: int, ids: Sequence[int], prompts: Sequence[str]
  ) -> Samples | None:
    """Completions that still wait for their rewards, or None."""
    table = self._checked(self.unscored(number), ids, prompts, scored=False)
    return None if table is None else samples_of(table)

  def _checked(
    self, path: pathlib.Path, ids: Sequence[int], prompts: Sequence[str], *, scored: bool
  ) -> pa.Table | None:
    if not path.exists():
      return None
    try:
      table = read_table(path)
    except ValueError as error:
      aside = path.with_name(f"{path.name}.damaged")
      path.replace(aside)
      logger.warning("%s; it is kept as %s and made again", error, aside.name)
      return None
    check_table(table, path, scored=scored)
    first = table["rollout"].to_numpy() == 0
    if table["prompt"].filter(first).to_pylist() != list(prompts) or table["prompt_id"].filter(
      first
    ).to_pylist() != list(ids):
      raise ValueError(f"{path} holds completions of other prompts; delete it or its folder")
    return table

  def save(
    self,
    number: int,
    first: int,
    ids: Sequence[int],
    prompts: Sequence[str],
    samples: Samples,
    rewards: Float[np.ndarray, "P n"],
  ) -> None:
    """Writes a scored part.

    Args:
      number: of the part.
      first: index of its first prompt in the evaluation.
      ids, prompts: of its prompts.
      samples, rewards: of its completions.
    """
    write_table(self.part(number), make_table(first, ids, prompts, samples, rewards))
    self.unscored(number).unlink(missing_ok=True)
    self.failed(number).unlink(missing_ok=True)


def check_spec(folder: pathlib.Path, spec: Mapping[str, Any]) -> None:
  """Writes what a folder is for, or refuses one that was for something else.

  Args:
    folder: made if need be.
    spec: JSON, kept in `spec.json`.

  Raises:
    ValueError: naming every difference.
  """
  folder.mkdir(parents=True, exist_ok=True)
  spec = json.loads(json.dumps(dict(spec)))
  stored = read_spec(folder)
  if stored is None:
    write_text(folder / _SPEC, json.dumps(spec, indent=2) + "\n")
    return
  changed = [
    f"{name}: {stored.get(name)!r:.200} -> {spec.get(name)!r:.200}"
    for name in sorted({*stored, *spec})
    if stored.get(name) != spec.get(name)
  ]
  if changed:
    raise ValueError(
      f"{folder} holds records of another evaluation ({'; '.join(changed)}); "
      "choose another folder or delete it"
    )


def read_spec(folder: pathlib.Path) -> dict[str, Any] | None:
  """What a folder of records is for; None if it does not say."""
  file = folder / _SPEC
  return read_json(file) if file.exists() else None


def _same(first: Mapping[str, Any], second: Mapping[str, Any], but: Sequence[str] = ()) -> bool:
  names = {*first, *second} - set(but)
  return all(first.get(name) == second.get(name) for name in names)


def read_records(folder: str | os.PathLike[str]) -> Records:
  """Reads a finished evaluation.

  Raises:
    ValueError: there are no records, or parts are missing.
  """
  path = pathlib.Path(folder)
  files = sorted(path.glob("part-[0-9]*[0-9].parquet"))
  spec = read_spec(path)
  if not files or spec is None:
    raise ValueError(f"{path} holds no records; evaluate a policy into it first")
  tables = [read_table(file) for file in files]
  for table, file in zip(tables, files):
    check_table(table, file, scored=True)
  table = pa.concat_tables(tables).sort_by(
    [("prompt_index", "ascending"), ("rollout", "ascending")]
  )
  samples = samples_of(table)
  num_prompts, num_samples = samples.lengths.shape
  first = slice(None, None, num_samples)
  indices = table["prompt_index"].to_numpy()[first]
  expected = spec.get("num_prompts", num_prompts)
  if num_prompts != expected or not np.array_equal(indices, np.arange(num_prompts)):
    raise ValueError(
      f"{path} holds {num_prompts} of {expected!r:.80} prompts; run its evaluation again to finish "
      "it"
    )
  return Records(
    prompts=table["prompt"].to_pylist()[first],
    prompt_ids=table["prompt_id"].to_numpy()[first],
    samples=samples,
    rewards=table["reward"].to_numpy().reshape(num_prompts, num_samples),
    spec=spec,
  )
