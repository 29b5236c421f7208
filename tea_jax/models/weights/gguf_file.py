"""The GGUF format: metadata and lazily dequantised tensors of one file.

The header is parsed here (the `gguf` package's reader takes seconds and a hundred megabytes for a
vocabulary); the package dequantises. Tensors are read and dequantised a few rows at a time, so a
load holds little besides its result.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import os
import pathlib
import struct
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

from tea_jax.models.weights import reader
from tea_jax.runtime.extras import extra

_SCALARS = {
  **{0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?"},
  **{10: "<Q", 11: "<q", 12: "<d"},
}
_STRING, _ARRAY = 8, 9
_CHUNK = 1 << 20  # elements dequantised at a time


@dataclasses.dataclass(frozen=True)
class _Tensor:
  shape: tuple[int, ...]
  kind: Any  # gguf.GGMLQuantizationType
  start: int
  row_bytes: int


class GgufFile:
  """Metadata and lazily dequantised tensors of one `.gguf` file.

  Attributes:
    metadata: every key of the header.

  Raises:
    ImportError: without the `gguf` package.
    ValueError: if the file is no GGUF, truncated, or of another version or byte order.
  """

  def __init__(self, path: str | os.PathLike[str]):
    self._path = pathlib.Path(path)
    self._gguf = _package()
    with self._path.open("rb") as stream:
      try:
        self.metadata, self._tensors = self._header(stream)
      except (struct.error, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is truncated or damaged in its header ({error}).") from error
    size = self._path.stat().st_size
    for name, tensor in self._tensors.items():
      end = tensor.start + tensor.row_bytes * math.prod(tensor.shape[:-1])
      if end > size:
        raise ValueError(
          f"{path} is truncated: tensor {name} ends at byte {end}, the file has {size}."
        )

  @property
  def source(self) -> str:
    return str(self._path)

  def shapes(self) -> Mapping[str, tuple[int, ...]]:
    return {name: tensor.shape for name, tensor in self._tensors.items()}

  def read(self, name: str, index: reader.Index) -> np.ndarray:
    """The slice `index` of a tensor, dequantised to float32."""
    tensor = self._tensors[name]
    columns = tensor.shape[-1]
    # A vector is one row; GGUF has no more than two axes in these architectures.
    rows = index[0] if len(tensor.shape) == 2 else slice(None)
    start, stop, _ = rows.indices(math.prod(tensor.shape[:-1]))
    out = np.empty((stop - start, len(range(*index[-1].indices(columns)))), np.float32)
    step = max(1, _CHUNK // columns)
    with self._path.open("rb") as stream:
      for row in range(start, stop, step):
        count = min(step, stop - row)
        stream.seek(tensor.start + row * tensor.row_bytes)
        raw = np.fromfile(stream, np.uint8, count * tensor.row_bytes)
        values = self._dequantize(raw.reshape(count, tensor.row_bytes), tensor.kind)
        out[row - start : row - start + count] = values[:, index[-1]]
    return out if len(tensor.shape) == 2 else out[0]

  def _dequantize(self, raw: np.ndarray, kind: Any) -> np.ndarray:
    kinds = self._gguf.GGMLQuantizationType
    if kind in (kinds.F32, kinds.F16):  # the package expects these already typed
      raw = raw.view(np.float32 if kind == kinds.F32 else np.float16)
    return self._gguf.quants.dequantize(raw, kind).astype(np.float32, copy=False)

  def _header(self, stream: BinaryIO) -> tuple[dict[str, Any], dict[str, _Tensor]]:
    if stream.read(4) != b"GGUF":
      raise ValueError(f"{self._path} is not a GGUF file.")
    version = _scalar(stream, "<I")
    if version not in (2, 3):
      raise ValueError(
        f"{self._path} has GGUF version {version}; supported: 2 and 3, little-endian."
      )
    num_tensors, num_keys = _scalar(stream, "<Q"), _scalar(stream, "<Q")
    metadata = {}
    for _ in range(num_keys):
      key = _string(stream)
      metadata[key] = _value(stream, _scalar(stream, "<I"))
    described = []
    for _ in range(num_tensors):
      name, rank = _string(stream), _scalar(stream, "<I")
      # GGUF lists the fastest axis first.
      shape = tuple(_scalar(stream, "<Q") for _ in range(rank))[::-1]
      described.append((name, shape, _scalar(stream, "<I"), _scalar(stream, "<Q")))
    alignment = metadata.get("general.alignment", 32)
    data = -(-stream.tell() // alignment) * alignment
    return metadata, {
      name: self._tensor(name, shape, code, data + offset)
      for name, shape, code, offset in described
    }

  def _tensor(self, name: str, shape: tuple[int, ...], code: int, start: int) -> _Tensor:
    try:
      kind = self._gguf.GGMLQuantizationType(code)
      supported = kind.name in ("F32", "F16") or hasattr(self._gguf.quants, kind.name)
    except ValueError:
      kind, supported = code, False
    if not supported:
      raise ValueError(
        f"Tensor {name} of {self._path} has the type {getattr(kind, 'name', kind)}, which the "
        "installed gguf package cannot dequantise."
      )
    block, size = self._gguf.GGML_QUANT_SIZES[kind]
    return _Tensor(shape, kind, start, shape[-1] // block * size)


def _package() -> Any:
  with extra("gguf", "reading a .gguf file"):
    package = importlib.import_module("gguf")
    importlib.import_module("gguf.quants")
  return package


def _read(stream: BinaryIO, size: int) -> bytes:
  data = stream.read(size)
  if len(data) != size:
    raise EOFError("it ends early")
  return data


def _scalar(stream: BinaryIO, form: str) -> Any:
  return struct.unpack(form, _read(stream, struct.calcsize(form)))[0]


def _string(stream: BinaryIO) -> str:
  return _read(stream, struct.unpack("<Q", _read(stream, 8))[0]).decode("utf-8")


def _value(stream: BinaryIO, kind: int) -> Any:
  if kind == _STRING:
    return _string(stream)
  if kind == _ARRAY:
    inner, count = struct.unpack("<IQ", _read(stream, 12))
    if inner in _SCALARS:
      form = _SCALARS[inner]
      return list(struct.unpack(f"<{count}{form[1]}", _read(stream, count * struct.calcsize(form))))
    return [_value(stream, inner) for _ in range(count)]
  if kind not in _SCALARS:
    raise EOFError(f"unknown metadata type {kind}")
  return _scalar(stream, _SCALARS[kind])
