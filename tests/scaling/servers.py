"""An OpenAI-compatible completions server on this machine, which misbehaves as its script says."""

import collections
import contextlib
import http.server
import json
import threading
import time


class Handler(http.server.BaseHTTPRequestHandler):
  """Answers "w0 w1 ..." words numbered by the seed; one entry of the script a request."""

  def do_POST(self):
    body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
    self.server.requests.append(body | {"path": self.path, "auth": self.headers["Authorization"]})
    action = self.server.script.popleft() if self.server.script else "answer"
    if action == "drop":
      self.connection.close()
      return
    if action == "slow":
      time.sleep(0.6)
    choices = [self.choice(body, i) for i in range(body["n"])]
    status, answer = 200, {"choices": choices}
    if isinstance(action, int):
      status, answer = action, {"error": "scripted"}
    elif action == "one":
      answer = {"choices": choices[:1]}
    elif action == "none":
      answer = {"choices": []}
    elif action == "null":
      choices[0]["text"] = None
    elif action == "no tokens":
      choices = [choice.pop("logprobs") for choice in choices]
    data = b"<html>" if action == "html" else json.dumps(answer).encode()
    with contextlib.suppress(ConnectionError):  # the client of a slow answer has gone
      self.send_response(status)
      self.send_header("Content-Length", str(len(data)))
      self.end_headers()
      self.wfile.write(data)

  def choice(self, body, i):
    start = body["prompt"].count(" ")
    tokens = [f" {(body['seed'] + i + k) % 97}" for k in range(start, start + body["max_tokens"])]
    return {"text": "".join(tokens), "finish_reason": "length", "logprobs": {"tokens": tokens}}

  def log_message(self, *args):
    pass


@contextlib.contextmanager
def completions_server():
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
    server.requests, server.script = [], collections.deque()
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
