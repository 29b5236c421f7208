"""Rows of prompt files: JSON lines, JSON, CSV, text, Parquet, saved data sets."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import pathlib
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

from tea_jax.runtime.extras import extra
from tea_jax.runtime.secrets import brief

_LONGEST_LINE = 1 << 28  # bytes
_MOST_TEXT = 1 << 30  # characters of all rows of a file
_ROWS = 128  # of Parquet, made at a time


def file_rows(path: str) -> Iterator[Any] | None:
  """The rows of a file or a saved data set; None if `path` is neither and looks like neither.

  Raises:
    ValueError: no such file, a kind that is not read, or a line that is damaged (with its number).
  """
  if os.path.isdir(path):
    saved = [n for n in ("dataset_dict.json", "state.json") if os.path.isfile(f"{path}/{n}")]
    return _saved(path, splits=saved[0] == "dataset_dict.json") if saved else None
  suffixes = [suffix.lower() for suffix in pathlib.PurePath(path).suffixes]
  packed = suffixes[-1:] == [".gz"]
  kind = (suffixes[:-1] if packed else suffixes)[-1:]
  read = _READERS.get(kind[0]) if kind else None
  if not os.path.isfile(path):
    if read is not None or packed:
      raise ValueError(f"there is no file {path}")
    return None
  if read is None or (packed and read is _parquet):
    raise ValueError(
      f"{path} is a file of a kind that is not read; save it as one of "
      f"{', '.join(_READERS)} (texts may be packed as .gz)"
    )
  return _bounded(_parquet(path) if read is _parquet else _opened(path, packed, read), path)


def text_size(value: Any, depth: int = 0) -> int:
  """Characters of all texts in a row."""
  if isinstance(value, str | bytes):
    return len(value)
  if depth > 20:
    return 0
  if isinstance(value, Mapping):
    return sum(text_size(item, depth + 1) for item in value.values())
  if isinstance(value, list | tuple):
    return 8 * len(value) + sum(text_size(item, depth + 1) for item in value)
  return 0


def _bounded(rows: Iterator[Any], path: str) -> Iterator[Any]:
  size = 0
  for row in rows:
    size += text_size(row)
    if size > _MOST_TEXT:
      raise ValueError(
        f"{path} unpacks to more than {_MOST_TEXT >> 30} GB of text; leave out the columns that "
        "neither prompts nor rewards need"
      )
    yield row


def _opened(
  path: str, packed: bool, read: Callable[[BinaryIO, str], Iterator[Any]]
) -> Iterator[Any]:
  try:
    with gzip.open(path) if packed else open(path, "rb") as file:
      yield from read(file, path)  # pyright: ignore[reportArgumentType]
  except (gzip.BadGzipFile, zlib.error, EOFError) as error:
    raise ValueError(f"{path} is damaged: {error}") from error


def _lines(file: BinaryIO, path: str) -> Iterator[tuple[int, str]]:
  number = 0
  while line := file.readline(_LONGEST_LINE):
    number += 1
    if len(line) == _LONGEST_LINE:
      raise ValueError(f"line {number} of {path} is longer than {_LONGEST_LINE >> 20} MB")
    try:
      text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
      raise ValueError(
        f"line {number} of {path} is not UTF-8 text ({error.reason}); save the file as UTF-8"
      ) from error
    if text.strip():
      yield number, text


def _jsonl(file: BinaryIO, path: str) -> Iterator[Any]:
  for row, (number, text) in enumerate(_lines(file, path)):
    yield _json(text, f"line {number} of {path}", f" (row {row})")


def _txt(file: BinaryIO, path: str) -> Iterator[str]:
  for _, text in _lines(file, path):
    yield text


def _json_rows(file: BinaryIO, path: str) -> Iterator[Any]:
  raw = file.read(_MOST_TEXT + 1)
  if len(raw) > _MOST_TEXT:
    raise ValueError(f"{path} is longer than {_MOST_TEXT >> 30} GB; save it as .jsonl")
  try:
    rows = _json(raw.decode("utf-8-sig"), path)
  except UnicodeDecodeError as error:
    raise ValueError(f"{path} is not UTF-8 text ({error.reason}); save it as UTF-8") from error
  if not isinstance(rows, list):
    raise ValueError(f"{path} holds no list of rows; save it as .jsonl, a row a line")
  yield from rows


def _csv(file: BinaryIO, path: str) -> Iterator[dict[str, Any]]:
  try:
    with io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
      rows = csv.DictReader(text, strict=True)
      for row in rows:
        if None in row or None in row.values():
          raise ValueError(
            f"line {rows.line_num} of {path} has another number of cells than line 1"
          )
        yield row
  except UnicodeDecodeError as error:
    raise ValueError(f"{path} is not UTF-8 text ({error.reason}); save it as UTF-8") from error
  except csv.Error as error:
    raise ValueError(f"{path} is no CSV: {error}") from error


def _json(text: str, where: str, row: str = "") -> Any:
  try:
    value = json.loads(text)
    if "\\u" in text:
      json.dumps(value, ensure_ascii=False).encode()
  except RecursionError as error:
    raise ValueError(f"{where} is nested too deeply") from error
  except UnicodeEncodeError as error:
    raise ValueError(f"{where}{row} holds half of a surrogate pair, which is no text") from error
  except ValueError as error:
    raise ValueError(f"{where} is not JSON: {error}") from error
  return value


def _parquet(path: str) -> Iterator[Any]:
  with extra("train", "reading Parquet"):
    import pyarrow
    import pyarrow.parquet
  try:
    with pyarrow.parquet.ParquetFile(path) as file:
      for batch in file.iter_batches(batch_size=_ROWS):
        yield from batch.to_pylist()
  except (pyarrow.ArrowException, OSError, ValueError) as error:  # texts are decoded late
    raise ValueError(f"{path} is no readable Parquet file: {brief(error)}") from error


def _saved(path: str, *, splits: bool) -> Iterator[Any]:
  """A folder of `datasets`' `save_to_disk`; of several splits the one called train."""
  with extra("data", "reading a saved data set"):
    import datasets
  try:
    found: Any = datasets.load_from_disk(path)
  except Exception as error:
    reason = f"{type(error).__name__}: {brief(error)}"
    raise ValueError(f"{path} is no readable data set: {reason}") from error
  if splits:
    if "train" not in found:
      raise ValueError(f"{path} has the splits {sorted(found)}, but none called train")
    found = found["train"]
  return iter(found)


_READERS: dict[str, Any] = {
  ".jsonl": _jsonl,
  ".ndjson": _jsonl,
  ".json": _json_rows,
  ".csv": _csv,
  ".txt": _txt,
  ".parquet": _parquet,
}
