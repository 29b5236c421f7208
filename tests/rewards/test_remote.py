"""The HTTP scorer against a real server on this machine."""

import collections
import contextlib
import http.server
import json
import threading
import time

import numpy as np
import pytest

pytest.importorskip("httpx")
pytest.importorskip("tenacity")

from tea_jax.rewards import RewardError, call_reward, make_reward


class Scorer(http.server.BaseHTTPRequestHandler):
  """Scores by length; misbehaves as the script says, one entry a request."""

  def do_POST(self):
    body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
    self.server.requests.append(body)
    action = self.server.script.popleft() if self.server.script else "score"
    if action == "slow":
      self.server.done.wait(60)
    status, answer = 200, {"scores": [float(len(text)) for text in body["completions"]]}
    if isinstance(action, int):
      status, answer = action, {"error": "scripted"}
    elif action == "short":
      answer["scores"].pop()
    elif action == "null":
      answer["scores"][0] = None
    elif action == "nan":
      answer["scores"][0] = float("nan")
    data = json.dumps(answer).encode()
    with contextlib.suppress(ConnectionError):  # a client that gave up has closed its end
      self.send_response(status)
      self.send_header("Content-Length", str(len(data)))
      self.end_headers()
      self.wfile.write(data)

  def log_message(self, *args):
    pass


@pytest.fixture
def server():
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Scorer) as server:
    server.requests, server.script = [], collections.deque()
    server.done = threading.Event()
    server.url = f"http://127.0.0.1:{server.server_port}/score"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.done.set()
    server.shutdown()
    thread.join()


def remote(server, **options):
  options = {"first_pause": 0.01, "concurrency": 1, "attempts": 3, "timeout": 10.0, **options}
  return make_reward("remote", url=server.url, **options)


TEXTS = ["a", "bb", "ccc", "dddd", "eeeee"]


def test_rows_are_batched_and_scored_in_order(server):
  scores = call_reward(remote(server, batch_size=2, concurrency=3), TEXTS, TEXTS)
  np.testing.assert_array_equal(scores, [1, 2, 3, 4, 5])
  assert sorted(len(body["completions"]) for body in server.requests) == [1, 2, 2]


def test_a_url_is_a_reward(server):
  np.testing.assert_array_equal(call_reward(make_reward(server.url), TEXTS, TEXTS), [1, 2, 3, 4, 5])


def test_every_successful_call_asks_the_server_anew(server):
  reward = remote(server)
  server.script.extend(["score", "null"])
  np.testing.assert_array_equal(call_reward(reward, TEXTS, TEXTS), [1, 2, 3, 4, 5])
  np.testing.assert_array_equal(call_reward(reward, TEXTS, TEXTS), [np.nan, 2, 3, 4, 5])
  assert len(server.requests) == 2


def test_asked_columns_are_sent(server):
  reward = remote(server, columns=("answer",))
  call_reward(reward, TEXTS, TEXTS, {"answer": [1, 2, 3, 4, 5], "level": [0] * 5})
  assert server.requests[0]["columns"] == {"answer": [1, 2, 3, 4, 5]}
  with pytest.raises(RewardError, match=r"\['answer'\], which the data lacks"):
    call_reward(reward, TEXTS, TEXTS)


def test_busy_server_is_asked_again(server):
  server.script.extend([503, 429])
  np.testing.assert_array_equal(call_reward(remote(server), TEXTS, TEXTS), [1, 2, 3, 4, 5])
  assert len(server.requests) == 3


def test_slow_answer_is_asked_again(server):
  server.script.append("slow")
  np.testing.assert_array_equal(
    call_reward(remote(server, timeout=0.5, attempts=100), TEXTS, TEXTS), [1, 2, 3, 4, 5]
  )


def test_refusal_is_not_repeated(server):
  server.script.append(400)
  with pytest.raises(RewardError, match="status 400"):
    call_reward(remote(server), TEXTS, TEXTS)
  assert len(server.requests) == 1


def test_wrong_number_of_scores_is_an_error(server):
  server.script.append("short")
  with pytest.raises(RewardError, match="4 scores came back for 5"):
    call_reward(remote(server), TEXTS, TEXTS)


def test_null_is_not_scored_and_nan_is_an_error(server):
  server.script.extend(["null", "nan"])
  np.testing.assert_array_equal(call_reward(remote(server), TEXTS, TEXTS), [np.nan, 2, 3, 4, 5])
  with pytest.raises(RewardError, match="returned nan for row 0"):
    call_reward(remote(server), TEXTS, TEXTS)


def test_scores_that_arrived_are_not_asked_for_again(server):
  reward = remote(server, batch_size=2, attempts=1)
  server.script.extend(["score", 500, "score"])
  with pytest.raises(RewardError, match=r"prompt 1 .*rollout 0"):
    call_reward(reward, TEXTS, TEXTS, num_rollouts=2)
  np.testing.assert_array_equal(call_reward(reward, TEXTS, TEXTS), [1, 2, 3, 4, 5])
  assert [len(body["completions"]) for body in server.requests] == [2, 2, 1, 2]


def test_after_a_batch_that_failed_for_good_the_others_are_not_sent(server):
  server.script.extend([404])
  reward = remote(server, batch_size=1)
  with pytest.raises(RewardError, match="status 404"):
    call_reward(reward, ["p"] * 50, [f"c{i}" for i in range(50)])
  assert len(server.requests) < 10


def test_dead_server_is_an_error_that_names_url_and_prompt():
  reward = make_reward("remote", url="http://127.0.0.1:9/none", attempts=2, first_pause=0.01)
  with pytest.raises(RewardError, match=r"127\.0\.0\.1:9/none.*row 0"):
    call_reward(reward, TEXTS, TEXTS)


@pytest.mark.parametrize(
  "option", [{"batch_size": 0}, {"attempts": 0}, {"timeout": 0}, {"url": "ftp://x"}]
)
def test_impossible_options_are_refused(option):
  with pytest.raises(ValueError, match=next(iter(option))):
    make_reward("remote", **{"url": "http://x", **option})


@pytest.mark.parametrize(
  "answer, said",
  [
    ((302, b'{"scores": [1]}'), "status 302"),
    ((200, b'{"scores": ["1"]}'), "not a number"),
    ((200, b'{"scores": [true]}'), "not a number"),
    ((200, b"[" * 100_000), "not of the form"),
    ((400, b"\x1b]0;owned\x07\x1b[2J"), "status 400"),
    ((200, b'{"scores": [1' + b"0" * 400 + b"]}"), "beyond"),
  ],
)
def test_answers_that_are_no_scores_are_refused_harmlessly(server, monkeypatch, answer, said):
  def do_POST(self):
    status, data = answer
    self.send_response(status)
    self.send_header("Location", "http://127.0.0.1:1/")
    self.send_header("Content-Length", str(len(data)))
    self.end_headers()
    self.wfile.write(data)

  monkeypatch.setattr(Scorer, "do_POST", do_POST)
  with pytest.raises(RewardError, match=said) as caught:
    call_reward(remote(server, attempts=1), ["p"], ["c"])
  assert str(caught.value).isprintable()


def test_a_server_that_dribbles_is_timed_out_as_a_whole(server, monkeypatch):
  def do_POST(self):
    self.send_response(200)
    self.send_header("Content-Length", "10000")
    self.end_headers()
    with contextlib.suppress(ConnectionError):
      for _ in range(3000):
        self.wfile.write(b" ")
        self.wfile.flush()
        time.sleep(0.1)

  monkeypatch.setattr(Scorer, "do_POST", do_POST)
  start = time.monotonic()
  with pytest.raises(RewardError, match=r"no whole answer within 0\.5 s"):
    call_reward(remote(server, attempts=2, timeout=0.5), ["p"], ["c"])
  assert time.monotonic() - start < 150, "the body alone takes 300 s"


def test_secrets_of_address_and_headers_are_in_no_error(server, monkeypatch):
  monkeypatch.setenv("SCORER_TOKEN", "SECRET2")
  url = "http://user:SECRET1@127.0.0.1:1/score?key=SECRET3"
  reward = make_reward(
    url, timeout=1, attempts=1, headers={"Authorization": "Bearer ${SCORER_TOKEN}"}
  )
  with pytest.raises(RewardError, match=r"127\.0\.0\.1:1/score") as caught:
    call_reward(reward, ["p"], ["c"])
  assert "SECRET" not in str(caught.value)
  with pytest.raises(ValueError, match="environment variable NOT_SET"):
    make_reward(url, headers={"Authorization": "${NOT_SET}"})
  with pytest.raises(ValueError, match="give it again"):
    make_reward(url, headers={"Authorization": "<hidden>"})
