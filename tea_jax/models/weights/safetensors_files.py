"""The safetensors format: lazy reads of a folder, streamed writes.

The `safetensors` package checks a file; tensors are then mapped and written one at a time, which
the package does only all at once. A file is the length of a JSON header, the header, the bytes.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
import struct
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
from huggingface_hub import split_state_dict_into_shards_factory

from tea_jax.runtime.files import check_links, read_json
from tea_jax.runtime.secrets import brief

_DTYPES = {
  "F64": np.dtype(np.float64),
  "F32": np.dtype(np.float32),
  "F16": np.dtype(np.float16),
  "BF16": np.dtype(ml_dtypes.bfloat16),
}
STORED = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
"""Names of the dtypes that can be written -> codes of the format."""

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"


class SafetensorsFolder:
  """The tensors of `model.safetensors`, or else of the shards that the index names.

  Where both are, the single file is read, as transformers does: a model that was saved in shards
  and later whole may keep its old index.

  Args:
    folder: with the files.
    ignored: endings of names of tensors that are left out, of whatever dtype.

  Raises:
    FileNotFoundError: if there is no such file, or a shard is missing.
    ValueError: for a truncated or damaged file, a malformed index, one or a link that leaves the
      folder, a tensor that stands twice or is not floating-point.
  """

  def __init__(self, folder: str | os.PathLike[str], *, ignored: tuple[str, ...] = ()):
    self._folder = pathlib.Path(folder)
    check_links(folder)
    self._places: dict[str, tuple[pathlib.Path, np.dtype, int]] = {}
    self._shapes: dict[str, tuple[int, ...]] = {}
    for file in self._files():
      open_safetensors(file)  # checks the header against the length of the file
      start, header = _header(file)
      for name, entry in header.items():
        if ignored and name.endswith(ignored):
          continue
        if name in self._shapes:
          raise ValueError(f"Tensor {name} stands in {self._places[name][0].name} and in {file}.")
        if entry["dtype"] not in _DTYPES:
          raise ValueError(
            f"Tensor {name} of {file} has dtype {entry['dtype']}; supported: "
            f"{', '.join(_DTYPES)} (dequantise the checkpoint first)."
          )
        self._shapes[name] = tuple(entry["shape"])
        self._places[name] = (file, _DTYPES[entry["dtype"]], start + entry["data_offsets"][0])

  @property
  def source(self) -> str:
    return str(self._folder)

  def shapes(self) -> Mapping[str, tuple[int, ...]]:
    return self._shapes

  def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
    # One mapping a tensor, gone with the array: the package maps the whole file until it is
    # closed, and every page that was read would count as memory of this process.
    file, dtype, offset = self._places[name]
    return np.memmap(file, dtype, mode="r", offset=offset, shape=self._shapes[name])[index]

  def _files(self) -> list[pathlib.Path]:
    single, index = self._folder / _WEIGHTS, self._folder / _INDEX
    if index.is_file():
      places = read_json(index).get("weight_map")
      if not isinstance(places, dict) or not places:
        raise ValueError(f"{index} has no weight_map of tensors and files.")
      shards = sorted({str(shard) for shard in places.values()})
      for shard in shards:
        if pathlib.PurePath(shard).name != shard or not shard.endswith(".safetensors"):
          raise ValueError(f"{index} names {shard!r}, which is no .safetensors file beside it.")
      if single.is_file():
        return [single]
      files = [self._folder / shard for shard in shards]
      missing = [file.name for file in files if not file.is_file()]
      if missing:
        raise FileNotFoundError(f"{index} names shards that are missing: {', '.join(missing)}.")
      return files
    if single.is_file():
      return [single]
    raise FileNotFoundError(
      f"{self._folder} holds neither {_WEIGHTS} nor {_INDEX} "
      "(pickled .bin checkpoints are not read; convert them to safetensors)."
    )


@dataclasses.dataclass(frozen=True)
class Stored:
  """A tensor to be written.

  Attributes:
    shape: as stored.
    dtype: one of `STORED`.
    values: gives the array when its turn comes; converted to `dtype`.
  """

  shape: tuple[int, ...]
  dtype: str
  values: Callable[[], np.ndarray]

  @property
  def num_bytes(self) -> int:
    return math.prod(self.shape) * _DTYPES[STORED[self.dtype]].itemsize


def write_safetensors(
  folder: pathlib.Path | None,
  tensors: Mapping[str, Stored],
  *,
  max_shard_bytes: int,
  name: str = _WEIGHTS,
) -> None:
  """Writes `name`, or shards of it with their index.

  Args:
    folder: existing folder; None writes nothing but still asks for every tensor, which processes
      other than the first must do when a tensor is gathered from all of them.
    tensors: in the order of writing.
    max_shard_bytes: a shard ends before the tensor that would exceed this.
    name: of the single file; shards are named after it.
  """
  plan = split_state_dict_into_shards_factory(
    dict(tensors),
    get_storage_size=lambda tensor: tensor.num_bytes,
    filename_pattern=f"{pathlib.Path(name).stem}{{suffix}}.safetensors",
    max_shard_size=max_shard_bytes,
  )
  for file, keys in plan.filename_to_tensors.items():
    shard = {key: tensors[key] for key in keys}
    file = file if plan.is_sharded else name  # which may be a temporary one
    _write_file(None if folder is None else folder / file, shard)
  if folder is not None and plan.is_sharded:
    index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
    (folder / f"{name}.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _write_file(file: pathlib.Path | None, tensors: Mapping[str, Stored]) -> None:
  header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
  end = 0
  for name, tensor in tensors.items():
    start, end = end, end + tensor.num_bytes
    code, shape = STORED[tensor.dtype], list(tensor.shape)
    header[name] = {"dtype": code, "shape": shape, "data_offsets": [start, end]}
  text = json.dumps(header, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)  # the data starts at a multiple of 8 bytes
  with open(os.devnull if file is None else file, "wb") as stream:
    stream.write(struct.pack("<Q", len(text)))
    stream.write(text)
    for name, tensor in tensors.items():
      values = np.ascontiguousarray(tensor.values(), dtype=_DTYPES[STORED[tensor.dtype]])
      if values.shape != tensor.shape:
        raise ValueError(f"tensor {name} has shape {values.shape} instead of {tensor.shape}.")
      stream.write(values.reshape(-1).view(np.uint8).data)


def _header(file: pathlib.Path) -> tuple[int, dict[str, Any]]:
  """Where the data starts, and each tensor's dtype, shape and offsets."""
  with file.open("rb") as stream:
    (size,) = struct.unpack("<Q", stream.read(8))
    header = json.loads(stream.read(size))
  header.pop("__metadata__", None)
  return 8 + size, header


def open_safetensors(file: str | os.PathLike[str]) -> Any:
  """Opens one file for lazy numpy reads.

  Raises:
    ValueError: if it is truncated or damaged, naming it.
  """
  try:
    return safetensors.safe_open(os.fspath(file), framework="numpy")
  except safetensors.SafetensorError as error:
    raise ValueError(
      f"{file} is truncated or damaged ({brief(error)}); download or save it again."
    ) from error
