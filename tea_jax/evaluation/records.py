"""Completions and rewards on disk: Parquet parts, each written whole or not at all.

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
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from tea_jax.runtime.extras import extra
from tea_jax.runtime.files import read_json, write_text, write_whole

with extra("train", "storing completions"):
  import pyarrow as pa
  import pyarrow.parquet as pq


logger = logging.getLogger(__name__)

_SPEC = "spec.json"
# What a change of needs no new completions for, only new scores.
_SCORING = ("reward_code", "columns")
_COLUMNS = {
  "prompt_index": pa.int32(),
  "prompt_id": pa.int64(),
  "rollout": pa.int32(),
  "prompt": pa.string(),
  "completion": pa.string(),
  "length": pa.int32(),
  "finished": pa.bool_(),
}


class Samples(NamedTuple):
  """Completions of P prompts, n each.

  Attributes:
    completions: P lists of n texts.
    lengths: `[P, n]` tokens.
    finished: `[P, n]`, False where a completion was cut at the maximum length.
  """

  completions: list[list[str]]
  lengths: Int[np.ndarray, "P n"]
  finished: Bool[np.ndarray, "P n"]


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
  """Reads and writes the parts of one evaluation."""

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
      _write_table(self.unscored(number), read_table(file).drop_columns(["reward"]))
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
    _write_table(self.unscored(number), _table(first, ids, prompts, samples, None))

  def load_unscored(
    self, number: int, ids: Sequence[int], prompts: Sequence[str]
  ) -> Samples | None:
    """Completions that still wait for their rewards, or None."""
    table = self._checked(self.unscored(number), ids, prompts, scored=False)
    return None if table is None else _samples(table)

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
    _check_table(table, path, scored=scored)
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
    _write_table(self.part(number), _table(first, ids, prompts, samples, rewards))
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
    f"{name}: {stored.get(name)!r} -> {spec.get(name)!r}"
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


def read_table(path: pathlib.Path) -> pa.Table:
  """A part, every page checked by its checksum.

  Raises:
    ValueError: naming the file, if it is damaged.
  """
  try:
    return pq.read_table(path, page_checksum_verification=True)
  except (pa.ArrowException, OSError, ValueError) as error:
    reason = " ".join(str(error).split())[:200]
    raise ValueError(f"{path} is damaged ({reason})") from error


def _check_table(table: pa.Table, path: pathlib.Path, *, scored: bool) -> None:
  """Refuses values that no evaluation writes."""
  expected = {**_COLUMNS, **({"reward": pa.float64()} if scored else {})}
  found = {field.name: field.type for field in table.schema}
  if found != expected or not table.num_rows:
    raise ValueError(f"{path} has the columns {found}, but records have {expected}")
  if any(table[name].null_count for name in expected):
    raise ValueError(f"{path} holds missing values; delete it, and it is made again")
  if (table["length"].to_numpy() < 0).any():
    raise ValueError(f"{path} holds negative lengths; delete it, and it is made again")
  if scored and np.isinf(table["reward"].to_numpy()).any():
    raise ValueError(f"{path} holds infinite rewards; delete it, and it is made again")


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
    _check_table(table, file, scored=True)
  table = pa.concat_tables(tables).sort_by(
    [("prompt_index", "ascending"), ("rollout", "ascending")]
  )
  samples = _samples(table)
  num_prompts, num_samples = samples.lengths.shape
  first = slice(None, None, num_samples)
  indices = table["prompt_index"].to_numpy()[first]
  expected = spec.get("num_prompts", num_prompts)
  if num_prompts != expected or not np.array_equal(indices, np.arange(num_prompts)):
    raise ValueError(
      f"{path} holds {num_prompts} of {expected} prompts; run its evaluation again to finish it"
    )
  return Records(
    prompts=table["prompt"].to_pylist()[first],
    prompt_ids=table["prompt_id"].to_numpy()[first],
    samples=samples,
    rewards=table["reward"].to_numpy().reshape(num_prompts, num_samples),
    spec=spec,
  )


def _table(first, ids, prompts, samples: Samples, rewards) -> pa.Table:
  num_prompts, num_samples = samples.lengths.shape
  columns: dict[str, Any] = {
    "prompt_index": np.repeat(np.arange(first, first + num_prompts, dtype=np.int32), num_samples),
    "prompt_id": np.repeat(np.asarray(ids, np.int64), num_samples),
    "rollout": np.tile(np.arange(num_samples, dtype=np.int32), num_prompts),
    "prompt": [text for text in prompts for _ in range(num_samples)],
    "completion": [text for row in samples.completions for text in row],
    "length": np.asarray(samples.lengths, np.int32).ravel(),
    "finished": np.asarray(samples.finished, bool).ravel(),
  }
  if rewards is not None:
    columns["reward"] = np.asarray(rewards, np.float64).ravel()
  return pa.table(columns)


def _samples(table: pa.Table) -> Samples:
  num_samples = int(table["rollout"].to_numpy().max()) + 1
  if table.num_rows % num_samples:
    raise ValueError(f"{table.num_rows} records are no multiple of {num_samples} completions")
  texts = table["completion"].to_pylist()
  return Samples(
    [texts[start : start + num_samples] for start in range(0, len(texts), num_samples)],
    table["length"].to_numpy().reshape(-1, num_samples),
    table["finished"].to_numpy(zero_copy_only=False).reshape(-1, num_samples),
  )


def _write_table(path: pathlib.Path, table: pa.Table) -> None:
  def write(temporary: pathlib.Path) -> None:
    pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)

  write_whole(path, write)
