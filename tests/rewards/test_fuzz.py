"""Damaged answers of a scoring server: the scores, or one sentence; never other numbers."""

import contextlib
import json
import math
import socket
import threading

import numpy as np
import pytest

pytest.importorskip("httpx")
pytest.importorskip("tenacity")

from tea_jax.rewards import RewardError, call_reward, make_reward
from tests.fuzzing import damaged, damaged_value, numbers, read_or_refused

TEXTS = ["a", "b", "c"]
ANSWER = {"scores": [0.5, None, -3]}


@pytest.fixture
def server():
  """Answers every connection with `server.reply`, whole HTTP messages, and closes it."""

  class Server:
    reply = b""
    reward = None

  with socket.create_server(("127.0.0.1", 0)) as listening:
    url = f"http://127.0.0.1:{listening.getsockname()[1]}/"
    Server.reward = make_reward(url, attempts=1, timeout=5.0, first_pause=0.01, concurrency=1)

    def serve():
      while True:
        try:
          connection, _ = listening.accept()
        except OSError:
          return
        with connection, contextlib.suppress(OSError):
          connection.settimeout(5)
          request = b""
          while not request.endswith(b'"columns":{}}'):
            request += connection.recv(65536) or b'"columns":{}}'
          connection.sendall(Server.reply)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield Server
    with contextlib.suppress(OSError):
      listening.shutdown(socket.SHUT_RDWR)
  thread.join(10)


def _message(body, headers=b""):
  length = b"Content-Length: %d\r\n" % len(body)
  return b"HTTP/1.1 200 OK\r\nConnection: close\r\n" + length + headers + b"\r\n" + body


def _scores(server):
  with read_or_refused(RewardError, names="remote"):
    return call_reward(server.reward, TEXTS, TEXTS)
  return None


def test_damaged_values_of_an_answer_are_scores_or_refused(server):
  for rng in numbers():
    answer = damaged_value(ANSWER, rng)
    server.reply = _message(json.dumps(answer).encode())
    scores = _scores(server)
    if scores is None:
      continue
    for score, value in zip(scores, answer["scores"], strict=True):
      assert math.isnan(score) if value is None else score == value


def test_damaged_bytes_of_an_answer_are_scores_or_refused(server):
  body = json.dumps(ANSWER).encode()
  chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n"
  messages = (
    _message(body),
    chunked % (len(body), body),
    _message(body, b"Content-Encoding: gzip\r\n"),
    _message(body, b"Content-Type: application/json; charset=utf-16\r\n"),
    b"HTTP/1.1 500 Oops\x1b[2J\r\nConnection: close\r\n\r\n\x1b]0;title\x07\nline\n",
  )
  for rng in numbers():
    server.reply = damaged(rng.choice(messages), rng)
    scores = _scores(server)
    assert scores is None or (scores.shape == (3,) and not np.isinf(scores).any())
