"""Damaged inputs by number: bytes and JSON values with a few changes, and what may come of them.

`TEA_JAX_FUZZ=5000 pytest tests/data/test_fuzz.py` tries more of them than the default 200.
"""

from __future__ import annotations

import contextlib
import copy
import os
import random
import resource
import time
from collections.abc import Iterator
from typing import Any

COUNT = int(os.environ.get("TEA_JAX_FUZZ", "200"))
_SECONDS = 10.0  # of the processor, for one input
_BYTES = 1 << 30  # by which the process may grow
_ODD_BYTES = (b"", b"\x00", b"\xff" * 8, b"{", b"]", b'"', b"\n", b"\xef\xbb\xbf", b"9" * 40, b"-1")
ODD = (
  *(None, True, False, 0, -1, 1, 7, 2**31, 2**63, 10**400, 0.5, -0.0, 1e39, 1e400, float("nan")),
  *("", "x", "1", "\x00", "../x", "/etc/passwd", "\ud800", "(a+)+$", "a" * 3000, "\x1b[2J"),
  *([], [[]], [None], ["x"], [0], {}, {"a": 1}, {"": None}),
)


def numbers(count: int | None = None) -> Iterator[random.Random]:
  """One source of randomness for each input; a failure names its seed."""
  for seed in range(COUNT if count is None else max(1, count * COUNT // 200)):
    yield random.Random(seed)


def damaged(raw: bytes, rng: random.Random) -> bytes:
  """`raw` with one to four changes: bits, cuts, repeats, insertions."""
  data = bytearray(raw)
  for _ in range(rng.randint(1, 4)):
    place = rng.randrange(len(data) + 1)
    length = rng.choice((1, 1, 4, 8, 64))
    change = rng.randrange(6)
    if change == 0 and data:
      data[place % len(data)] ^= 1 << rng.randrange(8)
    elif change == 1:
      data[place : place + length] = rng.randbytes(length)
    elif change == 2:
      del data[place : place + length]
    elif change == 3:
      data[place:place] = rng.choice(_ODD_BYTES)
    elif change == 4:
      data[place:place] = data[place : place + length]
    elif rng.random() < 0.3:
      del data[place:]
  return bytes(data)


def damaged_value(value: Any, rng: random.Random) -> Any:
  """A JSON value with one to three changes: keys gone, new, or with a value of another kind."""
  value = copy.deepcopy(value)
  for _ in range(rng.randint(1, 3)):
    holders = list(_holders(value))
    if not holders:
      return rng.choice(ODD)
    holder = rng.choice(holders)
    keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
    key = rng.choice(keys)
    change = rng.randrange(4)
    if change == 0:
      del holder[key]
    elif change == 1 and isinstance(holder, dict):
      holder[f"{key}x"] = holder.pop(key)
    elif change == 2:
      holder[key] = copy.deepcopy(holder[rng.choice(keys)])
    else:
      holder[key] = copy.deepcopy(rng.choice(ODD))
  return value


def _holders(value: Any) -> Iterator[Any]:
  if isinstance(value, dict | list) and value:
    yield value
    for inner in value.values() if isinstance(value, dict) else value:
      yield from _holders(inner)


@contextlib.contextmanager
def read_or_refused(*kinds: type[Exception], names: str = "") -> Iterator[None]:
  """The block ends, or raises one of `kinds` with one sentence that holds `names`; soon, and small.

  Another exception comes out as it is, and fails the test.
  """
  start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  try:
    yield
  except kinds as error:
    _check_sentence(error, names)
  assert time.process_time() - start < _SECONDS
  grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
  assert grown * 1024 < _BYTES


def _check_sentence(error: Exception, names: str) -> None:
  text = str(error)
  assert text, f"{type(error).__name__} without a word"
  assert len(text) < 2000, f"{len(text)} characters: {text[:200]}"
  assert "\n" not in text.strip(), text
  assert not any(c in text for c in "\x1b\x00"), repr(text)
  assert names in text, text
