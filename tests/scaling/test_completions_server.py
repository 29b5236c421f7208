"""The completions server generator against a real server on this machine."""

import json

import pytest

pytest.importorskip("httpx")
pytest.importorskip("tenacity")

from tea_jax.runtime import processes
from tea_jax.runtime.completions_client import CompletionsError
from tea_jax.scaling.completions_server import CompletionsServer
from tea_jax.scaling.generators import Request
from tests.scaling.servers import completions_server

PROMPTS = ["one", "two two"]
ROOT = [Request(0, 0, (), 0), Request(1, 0, (), 0), Request(0, 0, (), 1)]


@pytest.fixture
def server():
  with completions_server() as server:
    yield server


def generator(server, **options):
  defaults = {
    "max_length": 5,
    "group_size": 2,
    "first_pause": 0.01,
    "concurrency": 1,
    "attempts": 3,
  }
  return CompletionsServer(server.url, PROMPTS, **{**defaults, "timeout": 10.0, **options})


def test_another_process_learns_the_groups_and_does_not_ask(server, monkeypatch):
  groups = generator(server)(ROOT)
  told = json.loads(json.dumps(groups))
  asked = len(server.requests)
  monkeypatch.setattr(processes, "several", lambda: True)
  monkeypatch.setattr(processes, "on_first", lambda function, *arguments: told)
  assert generator(server)(ROOT) == groups
  assert len(server.requests) == asked


def test_groups_come_in_order_and_repeat(server):
  options = {"model": "m", "temperature": 0.7, "top_p": 0.9}
  ask = generator(server, concurrency=3, stop=("\n",), **options)
  groups = ask(ROOT)
  assert [len(group) for group in groups] == [2, 2, 2]
  assert len({group[0].text for group in groups}) == 3
  assert groups[0][0].tokens == tuple(f" {w}" for w in groups[0][0].text.split())
  assert not groups[0][0].finished
  assert ask(ROOT) == groups
  body = server.requests[0]
  assert body["path"] == "/v1/completions"
  expected = {
    "model": "m",
    "stop": ["\n"],
    "temperature": 0.7,
    "top_p": 0.9,
    "n": 2,
    "max_tokens": 5,
  }
  assert {name: body[name] for name in expected} == expected


def test_a_state_is_continued_from_its_text(server):
  ask = generator(server)
  ((root, *_),) = ask(ROOT[:1])
  prefix = root.tokens[:2]
  ((answer, _),) = ask([Request(0, 1, prefix, 0)])
  assert server.requests[-1]["prompt"] == "one" + "".join(prefix)
  assert server.requests[-1]["max_tokens"] == 3
  assert answer.tokens[:2] == prefix
  assert len(answer.tokens) == 5
  assert answer.text == "".join(answer.tokens)


def test_equal_prefixes_of_different_states_have_different_seeds(server):
  ask = generator(server)
  ask([Request(0, 1, (" x",), 0), Request(0, 2, (" x",), 0)])
  assert len({body["seed"] for body in server.requests}) == 2


def test_words_stand_in_for_tokens(server):
  server.script.append("no tokens")
  ((answer, _),) = generator(server)(ROOT[:1])
  assert "".join(answer.tokens) == answer.text
  assert len(answer.tokens) == 5


def test_a_server_that_ignores_n_is_asked_until_the_group_is_full(server):
  server.script.extend(["one"] * 3)
  (group,) = generator(server, group_size=3)(ROOT[:1])
  assert len({answer.text for answer in group}) == 3
  assert [body["n"] for body in server.requests] == [3, 2, 1]


@pytest.mark.parametrize("trouble", [503, 429, "drop", "slow"])
def test_passing_trouble_is_tried_again(server, trouble):
  server.script.append(trouble)
  assert len(generator(server, timeout=0.3)(ROOT[:1])) == 1
  assert len(server.requests) == 2


@pytest.mark.parametrize(
  ("trouble", "message"),
  [
    (400, "status 400"),
    (307, "status 307"),
    ("html", "not of the form"),
    ("none", "holds no texts"),
    ("null", "holds no texts"),
  ],
)
def test_what_will_not_pass_is_an_error_at_once(server, trouble, message):
  server.script.append(trouble)
  with pytest.raises(CompletionsError, match=f"prompt 0.*{message}"):
    generator(server)(ROOT[:1])
  assert len(server.requests) == 1


def test_groups_that_arrived_are_not_asked_for_again(server):
  ask = generator(server, attempts=1)
  server.script.extend(["answer", 500])
  with pytest.raises(CompletionsError, match="status 500"):
    ask(ROOT)
  assert len(ask(ROOT)) == 3
  assert len(server.requests) == 4


def test_dead_server_is_an_error_that_hides_secrets():
  ask = CompletionsServer(
    "http://user:word@127.0.0.1:9/v1", PROMPTS, max_length=4, attempts=2, first_pause=0.01
  )
  with pytest.raises(CompletionsError, match=r"127\.0\.0\.1:9/v1/completions") as error:
    ask(ROOT[:1])
  assert "word" not in str(error.value)


def test_headers_take_variables_of_the_environment(server, monkeypatch):
  monkeypatch.setenv("TOKEN", "abc")
  generator(server, headers={"Authorization": "Bearer ${TOKEN}"})(ROOT[:1])
  assert server.requests[0]["auth"] == "Bearer abc"


@pytest.mark.parametrize(
  "option",
  [{"group_size": 0}, {"attempts": 0}, {"timeout": 0}, {"url": "ftp://x"}, {"max_length": 0}],
)
def test_impossible_options_are_refused(option):
  options = {"url": "http://x", "prompts": PROMPTS, "max_length": 4, **option}
  with pytest.raises(ValueError, match=next(iter(option))):
    CompletionsServer(**options)
