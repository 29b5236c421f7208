"""Judges against a chat endpoint on this machine, and the verdicts in their replies."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

pytest.importorskip("httpx")
pytest.importorskip("tenacity")

from tea_jax.rewards.judge import (
  ChatJudge,
  PolicyJudge,
  Reply,
  judge_message,
  judge_template,
  read_verdict,
)
from tests.rewards.chat_endpoint import chat_endpoint


@pytest.fixture
def endpoint():
  with chat_endpoint() as server:
    yield server


def judge(endpoint, **options):
  return ChatJudge(endpoint.url, "small", **{"first_pause": 0.01, "attempts": 3, **options})


def test_replies_come_in_the_order_of_the_messages(endpoint):
  messages = [f"message {i}" for i in range(9)]
  assert [reply.text for reply in judge(endpoint)(messages)] == messages
  path, body, _ = endpoint.requests[0]
  assert path == "/v1/chat/completions"
  assert (body["model"], body["temperature"]) == ("small", 0.0)


def test_busy_servers_are_asked_again_and_others_are_not(endpoint):
  endpoint.script.extend([503, 429])
  assert judge(endpoint)(["x"])[0].text == "x"
  endpoint.script.append(401)
  with pytest.raises(ValueError, match=r"answered 401: .*scripted"):
    judge(endpoint)(["x"])
  assert len(endpoint.requests) == 4


def test_headers_are_filled_from_the_environment_and_kept_out_of_the_name(endpoint, monkeypatch):
  monkeypatch.setenv("JUDGE_KEY", "s3cret")
  chat = judge(endpoint, headers={"Authorization": "Bearer ${JUDGE_KEY}"})
  chat(["x"])
  assert endpoint.requests[0][2]["Authorization"] == "Bearer s3cret"
  assert "s3cret" not in chat.name


def test_what_the_server_marks_as_refusal_is_one(endpoint):
  endpoint.script.extend(
    [{"content": None, "refusal": "no [[A]]"}, {"content": "", "finish": "content_filter"}]
  )
  replies = judge(endpoint, concurrency=1)(["x", "y"])
  assert [read_verdict(reply) for reply in replies] == ["refused", "refused"]


def test_mistakes_are_named():
  with pytest.raises(ValueError, match="must start with http"):
    ChatJudge("localhost:8000", "small")
  with pytest.raises(ValueError, match="concurrency=0 must be at least 1"):
    ChatJudge("http://localhost:8000", "small", concurrency=0)


@pytest.mark.parametrize(
  "text, verdict",
  [
    ("A is shorter.\n[[A]]", "first"),
    ("I first thought [[A]], but: [[B]]", "second"),
    ("[[ c ]]", "tie"),
    ("A", "first"),
    ("Answer: B.", "second"),
    ("I'm sorry, but I can't compare these.", "refused"),
    ("Both have merits.", "unreadable"),
    ("", "unreadable"),
    ("A is the better answer", "unreadable"),
  ],
)
def test_verdicts_are_read(text, verdict):
  assert read_verdict(Reply(text)) == verdict


def test_braces_inside_the_texts_stay_as_they_are(tmp_path):
  template = judge_template()
  message = judge_message(template, "say {first}", "{second}", "x {prompt} y")
  for text in ("say {first}", "{second}", "x {prompt} y"):
    assert text in message
  (tmp_path / "short.txt").write_text("{prompt} {first}")
  with pytest.raises(ValueError, match=r"lacks \{second\}"):
    judge_template(tmp_path / "short.txt")


class FavouriteLetter:
  """A policy whose logits favour one token, and a tokenizer of characters."""

  def __init__(self, letter):
    self.letter, self.params, self.seen = letter, None, []
    self.tokenizer = SimpleNamespace(encode=self.encode, chat_template=None)

  def encode(self, text, add_special_tokens=True):
    self.seen.append(text)
    return [ord(character) for character in text]

  def hidden_states(self, params, tokens, lengths):
    # The last valid token is the one that is read: a wrong place would see another.
    return np.float32(1) * (tokens[..., None] == ord("["))

  def logits(self, params, hidden):
    return np.zeros(128, np.float32) + hidden * np.eye(128, dtype=np.float32)[ord(self.letter)]


@pytest.mark.parametrize("letter, verdict", [("A", "first"), ("B", "second"), ("C", "tie")])
def test_a_policy_says_its_most_likely_verdict(letter, verdict):
  policy = FavouriteLetter(letter)
  replies = PolicyJudge(cast(Any, policy), "favourite")(["compare", "a longer message to compare"])
  assert [read_verdict(reply) for reply in replies] == [verdict, verdict]
  assert policy.seen[-1].endswith("compare[[")
