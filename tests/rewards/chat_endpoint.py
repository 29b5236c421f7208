"""A chat endpoint on this machine that says what it is told."""

from __future__ import annotations

import collections
import contextlib
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any


class _Handler(http.server.BaseHTTPRequestHandler):
  """Answers with the script's next entry, a status or a message, or as `server.reply` says."""

  server: Any

  def do_POST(self):
    body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
    self.server.requests.append((self.path, body, dict(self.headers)))
    content = self.server.reply(body["messages"][0]["content"])
    action = self.server.script.popleft() if self.server.script else {"content": content}
    status = action if isinstance(action, int) else 200
    answer: dict[str, Any] = {"error": "scripted"}
    if isinstance(action, dict):
      finish = action.pop("finish", "stop")
      answer = {"choices": [{"message": action, "finish_reason": finish}]}
    data = json.dumps(answer).encode()
    self.send_response(status)
    self.send_header("Content-Length", str(len(data)))
    self.end_headers()
    self.wfile.write(data)

  def log_message(self, *args):
    pass


@contextlib.contextmanager
def chat_endpoint(reply: Callable[[str], str] = lambda message: message) -> Iterator[Any]:
  """A running server: `url`, `requests` it got, and a `script` of what to do instead of `reply`."""
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
    served: Any = server
    served.requests, served.script, served.reply = [], collections.deque(), reply
    served.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield served
    server.shutdown()
    thread.join()
