"""Chat and raw templates; over-long prompts are counted, not cut."""

import logging

import pytest

from tea_jax.data import encode_prompts, make_prompt, render_prompt
from tests.training import tiny

TEMPLATE = (
  "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}|{% endfor %}"
  "{% if add_generation_prompt %}a:{% endif %}"
)


class Tokenizer:
  """One token a character; raw text gets a BOS (1), chat templates write their own."""

  bos_token_id = 1

  def __init__(self, chat_template=TEMPLATE, prefix="\x01"):
    self.chat_template = chat_template and prefix + chat_template

  def __call__(self, text, add_special_tokens):
    return {"input_ids": [1] * add_special_tokens + [ord(character) for character in text]}


def decode(ids):
  return "".join(map(chr, ids))


PROMPTS = [make_prompt("abc"), make_prompt("a much longer prompt"), make_prompt("xyz")]


def test_chat_template_opens_the_assistant_turn_with_one_bos():
  encoded = encode_prompts(PROMPTS[:1], Tokenizer(), max_prompt_length=50)
  assert decode(encoded.tokens[0]) == "\x01u:abc|a:"


def test_raw_text_is_continued_as_it_is_with_the_tokenizer_s_own_bos():
  encoded = encode_prompts(PROMPTS[:1], Tokenizer(), template="raw", max_prompt_length=50)
  assert decode(encoded.tokens[0]) == "\x01abc"


def test_system_prompt_comes_first():
  assert render_prompt(PROMPTS[0], Tokenizer(), "chat", "S") == "\x01s:S|u:abc|a:"
  assert render_prompt(PROMPTS[0], Tokenizer(), "raw", "S") == "S\n\nabc"


def test_over_long_prompts_are_dropped_with_a_count(caplog):
  with caplog.at_level(logging.WARNING):
    encoded = encode_prompts(PROMPTS, Tokenizer(), template="raw", max_prompt_length=4)
  assert [prompt.text for prompt in encoded.prompts] == ["abc", "xyz"]
  assert [prompt.text for prompt in encoded.dropped] == ["a much longer prompt"]
  assert "dropped 1 of 3 prompts" in caplog.text
  with pytest.raises(ValueError, match="all 3 prompts are longer than max_prompt_length=3"):
    encode_prompts(PROMPTS, Tokenizer(), template="raw", max_prompt_length=3)


def test_templates_that_write_the_date_write_the_same_one_every_day():
  tokenizer = tiny.tokenizer()
  tokenizer.chat_template = (
    "{%- if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}"
    "{% endif -%}"
    "Today: {{ date_string }} {{ messages[0].content }}"
  )
  assert render_prompt(PROMPTS[0], tokenizer, "chat", None) == "Today: 26 Jul 2024 abc"


def test_doubled_bos_is_an_error():
  with pytest.raises(ValueError, match="two BOS"):
    encode_prompts(PROMPTS, Tokenizer(prefix="\x01\x01"), max_prompt_length=50)


def test_missing_or_unknown_template_is_refused():
  with pytest.raises(ValueError, match="template='raw'"):
    encode_prompts(PROMPTS, Tokenizer(chat_template=None), max_prompt_length=50)
  with pytest.raises(ValueError, match="'chat' or 'raw'"):
    encode_prompts(PROMPTS, Tokenizer(), template="none", max_prompt_length=50)  # type: ignore


def test_real_tokenizer_of_the_small_model_gives_the_chat_format():
  transformers = pytest.importorskip("transformers")
  template = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
  )
  from tokenizers import Tokenizer as Backend
  from tokenizers import models, pre_tokenizers

  words = ["[UNK]", "<|", "user", "assistant", "|>", "abc"]
  backend = Backend(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
  backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend)
  tokenizer.chat_template = template
  assert render_prompt(PROMPTS[0], tokenizer, "chat") == "<|user|>abc<|assistant|>"
  encoded = encode_prompts(PROMPTS[:1], tokenizer, max_prompt_length=50)
  assert all(isinstance(token, int) for token in encoded.tokens[0])
