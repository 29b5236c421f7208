"""One part of records: the completions of some prompts as a Parquet table, written whole.

Every page of a part has a checksum, and every value is checked when it is read.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from tea_jax.runtime.extras import extra
from tea_jax.runtime.files import write_whole
from tea_jax.runtime.secrets import brief

with extra("train", "storing completions"):
  import pyarrow as pa
  import pyarrow.parquet as pq

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


def make_table(
  first: int,
  ids: Sequence[int],
  prompts: Sequence[str],
  samples: Samples,
  rewards: Float[np.ndarray, "P n"] | None,
) -> pa.Table:
  """The table of a part, without rewards while it has none."""
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


def samples_of(table: pa.Table) -> Samples:
  """The completions of whole prompts."""
  num_samples = int(table["rollout"].to_numpy().max()) + 1
  if table.num_rows % num_samples:
    raise ValueError(f"{table.num_rows} records are no multiple of {num_samples} completions")
  texts = table["completion"].to_pylist()
  return Samples(
    [texts[start : start + num_samples] for start in range(0, len(texts), num_samples)],
    table["length"].to_numpy().reshape(-1, num_samples),
    table["finished"].to_numpy(zero_copy_only=False).reshape(-1, num_samples),
  )


def write_table(path: pathlib.Path, table: pa.Table) -> None:
  """Writes a part, whole or not at all."""

  def write(temporary: pathlib.Path) -> None:
    pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)

  write_whole(path, write)


def read_table(path: pathlib.Path) -> pa.Table:
  """A part, every page checked by its checksum.

  Raises:
    ValueError: naming the file, if it is damaged.
  """
  try:
    return pq.read_table(path, page_checksum_verification=True)
  except (pa.ArrowException, OSError, ValueError) as error:
    raise ValueError(f"{path} is damaged ({brief(error)})") from error


def check_table(table: pa.Table, path: pathlib.Path, *, scored: bool) -> None:
  """Refuses values that no evaluation writes."""
  expected = {**_COLUMNS, **({"reward": pa.float64()} if scored else {})}
  found = {field.name: field.type for field in table.schema}
  if found != expected or not table.num_rows:
    raise ValueError(f"{path} has the columns {found}, but records have {expected}")
  if any(table[name].null_count for name in expected):
    raise ValueError(f"{path} holds missing values; delete it, and it is made again")
  for name in ("length", "rollout", "prompt_index"):
    if (table[name].to_numpy() < 0).any():
      raise ValueError(f"{path} holds a negative {name}; delete it, and it is made again")
  if scored and np.isinf(table["reward"].to_numpy()).any():
    raise ValueError(f"{path} holds infinite rewards; delete it, and it is made again")
