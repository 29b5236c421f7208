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
_SMALLEST_KEY, _SMALLEST_TENSOR = 13, 32  # bytes in the header
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
    size = self._path.stat().st_size
    with self._path.open("rb") as stream:
      try:
        self.metadata, self._tensors = self._header(_Header(stream, size))
      except (struct.error, EOFError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is truncated or damaged in its header ({error}).") from error
    before, previous = 0, ""
    for name, tensor in sorted(self._tensors.items(), key=lambda item: item[1].start):
      end = tensor.start + tensor.row_bytes * math.prod(tensor.shape[:-1])
      if end > size:
        raise ValueError(
          f"{path} is truncated: tensor {name} ends at byte {end}, the file has {size}."
        )
      if tensor.start < before:
        raise ValueError(f"{path} is damaged: the tensors {previous} and {name} overlap.")
      before, previous = end, name

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

  def _header(self, header: _Header) -> tuple[dict[str, Any], dict[str, _Tensor]]:
    if header.left < 4 or header.read(4) != b"GGUF":
      raise ValueError(f"{self._path} is not a GGUF file.")
    version = header.scalar("<I")
    if version not in (2, 3):
      raise ValueError(
        f"{self._path} has GGUF version {version}; supported: 2 and 3, little-endian."
      )
    num_tensors, num_keys = header.scalar("<Q"), header.scalar("<Q")
    header.check_count(num_keys, _SMALLEST_KEY)
    metadata: dict[str, Any] = {}
    for _ in range(num_keys):
      key = header.string()
      if key in metadata:
        raise ValueError(f"{self._path} has the metadata key {key} twice.")
      metadata[key] = header.value(header.scalar("<I"))
    header.check_count(num_tensors, _SMALLEST_TENSOR)
    described: dict[str, tuple[tuple[int, ...], int, int]] = {}
    for _ in range(num_tensors):
      name, rank = header.string(), header.scalar("<I")
      if name in described:
        raise ValueError(f"{self._path} has the tensor {name} twice.")
      if not 1 <= rank <= 4:
        raise ValueError(f"Tensor {name} of {self._path} has {rank} axes; GGUF has 1 to 4.")
      # GGUF lists the fastest axis first.
      shape = tuple(header.scalar("<Q") for _ in range(rank))[::-1]
      described[name] = (shape, header.scalar("<I"), header.scalar("<Q"))
    self._check_split(metadata)
    alignment = metadata.get("general.alignment", 32)
    whole = isinstance(alignment, int) and not isinstance(alignment, bool)
    if not whole or alignment < 1 or alignment & (alignment - 1):
      raise ValueError(
        f"{self._path} has general.alignment={alignment!r:.80}, which is no power of two."
      )
    data = -(-header.position // alignment) * alignment
    for name, (_, _, offset) in described.items():
      if offset % alignment:
        raise ValueError(
          f"Tensor {name} of {self._path} starts at byte {offset} of the data, no multiple of "
          f"general.alignment={alignment}."
        )
    return metadata, {
      name: self._tensor(name, shape, code, data + offset)
      for name, (shape, code, offset) in described.items()
    }

  def _check_split(self, metadata: Mapping[str, Any]) -> None:
    count = metadata.get("split.count", 1)
    if count not in (0, 1):
      raise ValueError(
        f"{self._path} is one of {count} parts of a split model, which are not read; merge them "
        "with llama-gguf-split --merge FIRST_PART WHOLE.gguf."
      )

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
    if any(length < 1 for length in shape) or shape[-1] % block:
      raise ValueError(
        f"Tensor {name} of {self._path} has shape {shape}; {getattr(kind, 'name', kind)} needs "
        f"rows of a multiple of {block} values."
      )
    return _Tensor(shape, kind, start, shape[-1] // block * size)


def _package() -> Any:
  with extra("gguf", "reading a .gguf file"):
    package = importlib.import_module("gguf")
    importlib.import_module("gguf.quants")
  return package


class _Header:
  """Reads the header of a file; nothing longer than the rest of the file is asked for."""

  def __init__(self, stream: BinaryIO, size: int):
    self._stream = stream
    self._size = size

  @property
  def position(self) -> int:
    return self._stream.tell()

  @property
  def left(self) -> int:
    return self._size - self._stream.tell()

  def check_count(self, count: int, smallest: int) -> None:
    """Refuses `count` items of at least `smallest` bytes that the file has no room for."""
    if count * smallest > self.left:
      raise EOFError(f"{count} items are announced where {self.left} bytes are left")

  def read(self, size: int) -> bytes:
    self.check_count(size, 1)
    data = self._stream.read(size)
    if len(data) != size:
      raise EOFError("it ends early")
    return data

  def scalar(self, form: str) -> Any:
    return struct.unpack(form, self.read(struct.calcsize(form)))[0]

  def string(self) -> str:
    return self.read(self.scalar("<Q")).decode("utf-8")

  def value(self, kind: int) -> Any:
    if kind == _STRING:
      return self.string()
    if kind == _ARRAY:
      inner, count = struct.unpack("<IQ", self.read(12))
      if inner in _SCALARS:
        form = _SCALARS[inner]
        self.check_count(count, struct.calcsize(form))
        raw = self.read(count * struct.calcsize(form))
        return list(struct.unpack(f"<{count}{form[1]}", raw))
      self.check_count(count, 8)
      return [self.value(inner) for _ in range(count)]
    if kind not in _SCALARS:
      raise EOFError(f"unknown metadata type {kind}")
    return self.scalar(_SCALARS[kind])
