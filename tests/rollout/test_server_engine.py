"""Training with a server that samples: our engine behind the protocol of vLLM, over HTTP."""

import contextlib
import http.server
import json
import threading

import numpy as np
import pytest

pytest.importorskip("httpx")
pytest.importorskip("tenacity")

from tea_jax.models.weights.load import load_policy
from tea_jax.rollout.engine import RolloutEngine
from tea_jax.rollout.sampling import SamplingConfig
from tea_jax.rollout.server_engine import ServerEngine
from tea_jax.runtime.completions_client import CompletionsError
from tea_jax.runtime.keys import make_key
from tests.training import tiny

SAMPLING = SamplingConfig(max_completion_length=6)
PROMPTS = [[1, 2, 3], [4, 5]]


class Handler(http.server.BaseHTTPRequestHandler):
  """Reads the weights of its folder when told to, and answers with ids and log-probabilities."""

  def do_POST(self):
    server, path = self.server, self.path
    body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
    server.requests.append((path, body))
    answer = {}
    with server.lock:
      if path == "/collective_rpc":
        server.policy = load_policy(str(server.folder))
      elif path == "/v1/completions":
        answer = {"choices": [server.change(each) for each in self.choices(body)]}
    data = json.dumps(answer).encode()
    self.send_response(200)
    self.send_header("Content-Length", str(len(data)))
    self.end_headers()
    self.wfile.write(data)

  def choices(self, body):
    policy = self.server.policy
    sampling = SamplingConfig(
      temperature=body["temperature"],
      max_completion_length=body["max_tokens"],
      stop_tokens=tuple(body["stop_token_ids"]),
    )
    drawn = RolloutEngine(policy, sampling).generate(
      policy.params, [body["prompt"]], key=make_key(body["seed"]), num_rollouts=body["n"]
    )
    for i in range(body["n"]):
      length = drawn.completion_lengths[0, i]
      tokens = drawn.completion_tokens[0, i, :length].tolist()
      yield {
        "text": " ".join(map(str, tokens)),
        "token_ids": tokens,
        "logprobs": {"token_logprobs": drawn.logprobs[0, i, :length].tolist()},
        "finish_reason": "stop" if drawn.finished[0, i] else "length",
      }

  def log_message(self, *args):
    pass


@contextlib.contextmanager
def policy_server(folder):
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
    server.folder, server.requests, server.lock = folder, [], threading.Lock()
    server.change = lambda choice: choice
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
      yield server
    finally:
      server.shutdown()
      thread.join()


@pytest.fixture
def server(tmp_path):
  with policy_server(tmp_path / "serving") as server:
    yield server


def engine(server, sampling=SAMPLING, **options):
  defaults = {"folder": server.folder, "dtype": "float32", "attempts": 2, "first_pause": 0.01}
  return ServerEngine(tiny.policy(), sampling, server.url, **{**defaults, **options})


def test_rollouts_are_the_server_s_under_the_weights_that_were_given(server):
  policy, asked = tiny.policy(), engine(server)
  rollouts = asked.generate(policy.params, PROMPTS, key=make_key(0), num_rollouts=5)
  again = asked.generate(policy.params, PROMPTS, key=make_key(0), num_rollouts=5)
  assert all(np.array_equal(*pair) for pair in zip(rollouts, again, strict=True))
  other = asked.generate(policy.params, PROMPTS, key=make_key(1), num_rollouts=5)
  assert not np.array_equal(rollouts.completion_tokens, other.completion_tokens)
  paths = [path for path, _ in server.requests]
  assert paths[:2] == ["/collective_rpc", "/reset_prefix_cache"]
  assert paths.count("/collective_rpc") == 1  # the same weights are not written again
  body = server.requests[2][1]
  assert body["return_token_ids"]
  assert (body["n"], body["max_tokens"], body["temperature"]) == (5, 6, 1.0)
  for row, prompt in enumerate(PROMPTS):
    assert rollouts.prompt_tokens[row, : len(prompt)].tolist() == prompt
  for row, column in np.ndindex(2, 5):
    length = rollouts.completion_lengths[row, column]
    assert 1 <= length <= 6
    assert (rollouts.logprobs[row, column, :length] < 0).all()
    assert not rollouts.completion_tokens[row, column, length:].any()
    assert not rollouts.logprobs[row, column, length:].any()
    ended = rollouts.completion_tokens[row, column, length - 1] in policy.stop_tokens
    assert rollouts.finished[row, column] == ended


@pytest.mark.slow
def test_a_run_trains_with_the_server_in_step(server, tmp_path):
  config = tiny.config(tmp_path / "run", steps=2)
  policy = tiny.policy()
  sampling = SamplingConfig(max_completion_length=config.sampling.max_completion_length)
  asked = ServerEngine(policy, sampling, server.url, folder=server.folder, dtype="float32")
  result = tiny.run(config, policy, engine=asked)
  steps = len(result.metrics)
  assert steps == config.steps
  # Stale weights would differ by much more after the first update.
  assert max(line["sampler/logp_difference/max"] for line in result.metrics) < 1e-4
  assert min(line["grad_norm"] for line in result.metrics) > 0
  assert sum(path == "/collective_rpc" for path, _ in server.requests) >= steps


def test_a_server_that_is_not_there_is_asked_for_with_its_command(tmp_path):
  asked = ServerEngine(
    tiny.policy(),
    SAMPLING,
    "http://127.0.0.1:9",
    folder=tmp_path / "serving",
    attempts=2,
    first_pause=0.01,
  )
  with pytest.raises(CompletionsError, match=r"vllm serve .*serving --dtype bfloat16"):
    asked.generate(tiny.policy().params, PROMPTS, key=make_key(0), num_rollouts=2)
  assert (tmp_path / "serving" / "model.safetensors").is_file()


def test_answers_without_ids_and_logprobs_are_refused(server):
  asked = engine(server)
  for change in (
    {"token_ids": None},
    {"token_ids": []},
    {"token_ids": [10**9] * 3},
    {"logprobs": None},
    {"logprobs": {"token_logprobs": [-1.0] * 7}},
    {"logprobs": {"token_logprobs": [float("nan")]}},
  ):
    server.change = lambda choice, change=change: choice | change
    with pytest.raises(CompletionsError, match="usable token_ids"):
      asked.generate(tiny.policy().params, PROMPTS[:1], key=make_key(0), num_rollouts=1)


def test_sampling_that_would_train_on_other_log_probabilities_is_refused(server):
  for options in ({"top_p": 0.9}, {"temperature": 0.0}):
    with pytest.raises(ValueError, match="whole softmax"):
      engine(server, SamplingConfig(**options))
  with pytest.raises(ValueError, match="processed_logprobs"):
    engine(server, SamplingConfig(temperature=0.7))
  engine(server, SamplingConfig(temperature=0.7), processed_logprobs=True)
