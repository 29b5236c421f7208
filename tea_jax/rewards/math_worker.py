"""Worker process of `BoxedMathReward`: JSON lines in, JSON lines out. Run by path, not imported.

It imports math-verify and nothing of this package, so it starts fast and never loads JAX. A line
`{"reference": str, "completion": str, "timeout": seconds}` is answered by `{"correct": bool}`,
`{"unreadable": true}` when the reference answer cannot be parsed, or `{"timeout": true}`.
"""

from __future__ import annotations

import json
import logging
import sys


def main() -> None:
  from math_verify import parse, verify
  from math_verify.errors import TimeoutException

  logging.disable(logging.CRITICAL)  # math-verify logs every expression that it cannot compare
  replies, sys.stdout = sys.stdout, sys.stderr  # nothing else may print into the protocol
  for line in sys.stdin:
    task = json.loads(line)
    seconds = max(1, int(task["timeout"]))
    reply: dict[str, object]
    try:
      reference = parse(task["reference"], parsing_timeout=seconds, raise_on_error=True)
      if not reference:
        reply = {"unreadable": True}
      else:
        answer = parse(task["completion"], parsing_timeout=seconds)
        reply = {"correct": bool(verify(reference, answer, timeout_seconds=seconds))}
    except TimeoutException:
      reply = {"timeout": True}
    except Exception:
      reply = {"unreadable": True}
    print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
  main()
