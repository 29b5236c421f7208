"""Completions and rewards on disk: Parquet parts, each written whole or not at all.

A folder of records holds `spec.json` (what was evaluated, and how) and `part-00000.parquet`, ...;
a part is the completions of some consecutive prompts. Interrupted work goes on with the first part
that is missing; a folder of another evaluation is refused.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from tea_jax.runtime.extras import extra
from tea_jax.runtime.files import write_text, write_whole

with extra("train", "storing completions"):
  import pyarrow as pa
  import pyarrow.parquet as pq


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
    check_spec(self.path, self.spec)

  def part(self, number: int) -> pathlib.Path:
    """File of a scored part."""
    return self.path / f"part-{number:05d}.parquet"

  def unscored(self, number: int) -> pathlib.Path:
    """File of a part's completions while they have no rewards."""
    return self.path / f"part-{number:05d}.unscored.parquet"

  def failed(self, number: int) -> pathlib.Path:
    """File of the scores that a failing reward left of a part."""
    return self.path / f"part-{number:05d}.failed.jsonl"

  def is_done(self, number: int) -> bool:
    """True if the part is there and can be read."""
    return _is_readable(self.part(number))

  def save_unscored(
    self, number: int, first: int, ids: Sequence[int], prompts: Sequence[str], samples: Samples
  ) -> None:
    """Writes completions before they are scored, so that a failing reward loses none."""
    _write_table(self.unscored(number), _table(first, ids, prompts, samples, None))

  def load_unscored(self, number: int) -> Samples | None:
    """Completions that still wait for their rewards, or None."""
    path = self.unscored(number)
    return _samples(pq.read_table(path)) if _is_readable(path) else None

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
  file = folder / "spec.json"
  spec = json.loads(json.dumps(dict(spec)))
  if not file.exists():
    write_text(file, json.dumps(spec, indent=2) + "\n")
    return
  stored = json.loads(file.read_text())
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


def read_records(folder: str | os.PathLike[str]) -> Records:
  """Reads a finished evaluation.

  Raises:
    ValueError: there are no records, or parts are missing.
  """
  path = pathlib.Path(folder)
  files = sorted(path.glob("part-[0-9]*[0-9].parquet"))
  if not files or not (path / "spec.json").exists():
    raise ValueError(f"{path} holds no records; evaluate a policy into it first")
  spec = json.loads((path / "spec.json").read_text())
  table = pa.concat_tables([pq.read_table(file) for file in files]).sort_by(
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
  write_whole(path, lambda temporary: pq.write_table(table, temporary, compression="zstd"))


def _is_readable(path: pathlib.Path) -> bool:
  try:
    pq.read_metadata(path)
  except (FileNotFoundError, pa.ArrowInvalid):
    return False
  return True
