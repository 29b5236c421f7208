"""A scoring server in 30 lines: `python experiments/examples/reward_server.py 8000`, then

    python -m experiments.train --preset quickstart --run-folder runs/served \
      --reward.functions http://127.0.0.1:8000/

It is sent `{"prompts": [...], "completions": [...], "columns": {...}}` and answers `{"scores":
[...]}`, a number or null ("not scored") for each completion. Status 429 or 5xx means "ask again".
"""

from __future__ import annotations

import http.server
import json
import sys


def score(prompt: str, completion: str) -> float | None:
  """Distinct words of a completion; put your model or verifier here."""
  return float(len(set(completion.split()))) if completion else None


class Handler(http.server.BaseHTTPRequestHandler):
  """Answers one POST at a time in each thread."""

  def do_POST(self):
    body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
    scores = [score(*pair) for pair in zip(body["prompts"], body["completions"], strict=True)]
    answer = json.dumps({"scores": scores}).encode()
    self.send_response(200)
    self.send_header("Content-Type", "application/json")
    self.send_header("Content-Length", str(len(answer)))
    self.end_headers()
    self.wfile.write(answer)

  def log_message(self, format, *arguments):
    pass


def server(port: int = 0) -> http.server.ThreadingHTTPServer:
  """Listening on this machine only; port 0 takes a free one."""
  return http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)


if __name__ == "__main__":
  server(int(sys.argv[1]) if len(sys.argv) > 1 else 8000).serve_forever()
