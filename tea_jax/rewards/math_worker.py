"""Worker process of `BoxedMathReward`: JSON lines in, JSON lines out. Run by path, not imported.

It imports math-verify and nothing of this package, so it starts fast and never loads JAX. A line
`{"reference": str, "completion": str, "timeout": seconds}` is answered by `{"correct": bool}`,
`{"unreadable": true}` when the reference answer cannot be parsed, or `{"timeout": true}`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys

_MEMORY = 4 << 30  # bytes of address space


def main() -> None:
  from math_verify import parse, verify
  from math_verify.errors import TimeoutException

  logging.disable(logging.CRITICAL)  # math-verify logs every expression that it cannot compare
  with contextlib.suppress(ImportError, ValueError, OSError):
    import resource

    # A power tower in an answer must not take the machine's memory.
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
  replies, sys.stdout = sys.stdout, sys.stderr  # nothing else may print into the protocol
  for line in sys.stdin:
    task = json.loads(line)
    seconds = max(1, int(task["timeout"]))
    reply: dict[str, object] = {"unreadable": True}
    try:
      reference = parse(task["reference"], parsing_timeout=seconds, raise_on_error=True)
      if reference:
        reply = {"correct": False}  # also of an answer that is too deep or too large to compare
        answer = parse(task["completion"], parsing_timeout=seconds)
        reply = {"correct": bool(verify(reference, answer, timeout_seconds=seconds))}
    except TimeoutException:
      reply = {"timeout": True}
    except (Exception, MemoryError):
      pass
    print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
  main()
