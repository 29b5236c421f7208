"""Reward model: the index of the score, own template, batches."""

import jax.numpy as jnp
import numpy as np
import pytest

from tea_jax.rewards import RewardError, call_reward
from tea_jax.rewards.model import ModelReward


class Tokenizer:
  """One token a character; id 2 is both end and padding, as in many reward models."""

  bos_token_id, eos_token_id, pad_token_id = 1, 2, 2

  def __init__(self, prefix="\x01"):
    turns = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}\x02{% endfor %}"
    self.chat_template = prefix + turns

  def __call__(self, text, add_special_tokens):
    assert not add_special_tokens
    return {"input_ids": [ord(character) for character in text]}


def score_at_last_token(params, tokens, lengths):
  """The causal sum of ids up to the last real token: padding or a wrong index would show."""
  sums = jnp.cumsum(tokens.astype(jnp.float32), axis=1)
  return params * jnp.take_along_axis(sums, lengths[:, None] - 1, axis=1)[:, 0]


def expected(prompt, completion):
  return sum(map(ord, f"\x01u:{prompt}\x02a:{completion}\x02"))


def reward(**options):
  return ModelReward(score_at_last_token, jnp.float32(1.0), Tokenizer(), **options)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_scores_do_not_depend_on_batches_or_padding(batch_size):
  prompts = ["p", "question", "a b c", "x", "yes"]
  completions = ["short", "a rather long completion" * 3, "", "mid size", "z"]
  scores = call_reward(reward(batch_size=batch_size, length_multiple=8), prompts, completions)
  np.testing.assert_allclose(scores, [expected(p, c) for p, c in zip(prompts, completions)])


def test_end_token_inside_the_conversation_does_not_move_the_score():
  scores = call_reward(reward(), ["p"], ["one\x02two\x02"])
  np.testing.assert_allclose(scores, [expected("p", "one\x02two\x02")])


def test_messages_column_replaces_the_prompt():
  turns = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "hello"},
    {"role": "user", "content": "more"},
  ]
  scores = call_reward(reward(), ["ignored", "p"], ["c", "c"], {"messages": [turns, None]})
  text = "\x01u:hi\x02a:hello\x02u:more\x02a:c\x02"
  np.testing.assert_allclose(scores, [sum(map(ord, text)), expected("p", "c")])


def test_few_shapes_are_compiled():
  shapes = []

  def recording(params, tokens, lengths):
    shapes.append(tokens.shape)  # runs once a compile
    return score_at_last_token(params, tokens, lengths)

  model = ModelReward(recording, 1.0, Tokenizer(), batch_size=4, length_multiple=32, max_length=64)
  for size in range(1, 40):
    model(["p"], ["x" * size])
  assert shapes == [(4, 32), (4, 64)]


def test_over_long_conversation_names_prompt_and_rollout():
  with pytest.raises(RewardError, match=r"109 tokens.*1 to 64.*prompt 1 .*rollout 0"):
    call_reward(
      reward(max_length=64), ["p", "p", "q", "q"], ["x", "x", "x" * 101, "x"], num_rollouts=2
    )


def test_doubled_bos_is_an_error():
  model = ModelReward(score_at_last_token, 1.0, Tokenizer(prefix="\x01\x01"))
  with pytest.raises(RewardError, match="two BOS"):
    call_reward(model, ["p"], ["c"])


def test_tokenizer_without_template_is_refused():
  tokenizer = Tokenizer()
  tokenizer.chat_template = None
  with pytest.raises(ValueError, match="no chat template"):
    ModelReward(score_at_last_token, 1.0, tokenizer)
