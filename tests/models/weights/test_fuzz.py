"""Damaged files of models, adapters and tokenizers: read, or one sentence that names the place."""

import json

import jax
import numpy as np
import pytest

from tea_jax.models.lora import LoraConfig, init_adapters
from tea_jax.models.weights import gguf
from tea_jax.models.weights.chat import apply_chat_template
from tea_jax.models.weights.gguf_file import GgufFile
from tea_jax.models.weights.huggingface import save_pretrained
from tea_jax.models.weights.load import _gguf_tokenizer
from tea_jax.models.weights.peft import load_adapters, save_adapters
from tea_jax.models.weights.safetensors_files import SafetensorsFolder
from tea_jax.models.weights.tokenizer import check_vocabulary, load_tokenizer
from tests.fuzzing import damaged, damaged_value, numbers, read_or_refused
from tests.models.families import FAMILIES
from tests.models.gguf_files import write_gguf
from tests.training import tiny

LORA = LoraConfig(rank=2, alpha=4.0, targets=("query", "down"))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
  folder = tmp_path_factory.mktemp("fuzz") / "adapter"
  tree = init_adapters(tiny.MODEL, LORA, jax.random.key(0))
  save_adapters(folder, tiny.MODEL, jax.tree.map(lambda leaf: leaf + 0.1, tree), LORA)
  return folder


def _load_adapter(folder):
  with read_or_refused(ValueError, names="adapter"):
    tree, lora = load_adapters(folder, tiny.MODEL)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))
    assert np.isfinite(lora.scale)


def test_damaged_configs_of_an_adapter(adapter):
  file = adapter / "adapter_config.json"
  good, raw = json.loads(file.read_text()), file.read_bytes()
  good |= {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 4.0, ".*down": 2}}
  for rng in numbers():
    if rng.random() < 0.7:
      file.write_text(json.dumps(damaged_value(good, rng)))
    else:
      file.write_bytes(damaged(raw, rng))
    _load_adapter(adapter)
  file.write_bytes(raw)


def test_damaged_weights_of_an_adapter(adapter):
  file = adapter / "adapter_model.safetensors"
  raw = file.read_bytes()
  for rng in numbers():
    file.write_bytes(_damaged_header(raw, rng))
    _load_adapter(adapter)
  file.write_bytes(raw)


def test_damaged_safetensors(tmp_path):
  policy = tiny.policy()
  folder = tmp_path / "model"
  save_pretrained(folder, policy.config, policy.params)
  file = folder / "model.safetensors"
  raw = file.read_bytes()
  for rng in numbers():
    file.write_bytes(_damaged_header(raw, rng))
    with read_or_refused(ValueError, names="model"):
      store = SafetensorsFolder(folder)
      for name, shape in store.shapes().items():
        assert store.read(name, (slice(None),) * len(shape)).shape == shape


def _damaged_header(raw, rng):
  """A safetensors file whose bytes, or whose header's values, are damaged."""
  size = int.from_bytes(raw[:8], "little")
  if rng.random() < 0.4:
    return damaged(raw[: 8 + size], rng) + raw[8 + size :]
  header = json.dumps(damaged_value(json.loads(raw[8 : 8 + size]), rng)).encode()
  return len(header).to_bytes(8, "little") + header + raw[8 + size :]


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("fuzz") / "tokenizer"
  tiny.tokenizer().save_pretrained(folder)
  return folder


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_damaged_tokenizers(tokenizer_folder, name):
  file = tokenizer_folder / name
  raw = file.read_bytes()
  for rng in numbers():
    if rng.random() < 0.7:
      file.write_text(json.dumps(damaged_value(json.loads(raw), rng)))
    else:
      file.write_bytes(damaged(raw, rng))
    with read_or_refused(ValueError, names="tokenizer"):
      found = load_tokenizer(tokenizer_folder)
      check_vocabulary(found, len(tiny.WORDS), tokenizer_folder)
  file.write_bytes(raw)


TEMPLATE = (
  "{{ bos_token }}{% for m in messages if m.role %}<{{ m['role'] | upper }}>\n{{ m.content }}"
  "{% endfor %}{% if add_generation_prompt %}{{ '>' * 3 }}{% endif %}"
)


def test_damaged_templates():
  tokenizer = tiny.tokenizer()
  for rng in numbers():
    tokenizer.chat_template = damaged(TEMPLATE.encode(), rng).decode("utf-8", "replace")
    with read_or_refused(ValueError, names="chat template"):
      text = apply_chat_template(tokenizer, [{"role": "user", "content": "hi"}])
      assert isinstance(text, str)


TOKENS = ["<s>", "</s>", *(chr(ord("a") + i) for i in range(26)), "ab", "abc"]


def test_damaged_metadata_of_a_gguf_file(tmp_path):
  pytest.importorskip("gguf")
  file = GgufFile(write_gguf(tmp_path / "model.gguf", FAMILIES["llama"]))
  good = file.metadata | {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [3, 3, *[1] * (len(TOKENS) - 2)],
    "tokenizer.ggml.merges": ["a b", "ab c"],
    "tokenizer.ggml.bos_token_id": 0,
    "tokenizer.ggml.eos_token_id": 1,
    "tokenizer.ggml.padding_token_id": 1,
    "tokenizer.ggml.add_bos_token": True,
  }
  for rng in numbers():
    file.metadata = damaged_value(good, rng)
    if rng.random() < 0.3 and isinstance(file.metadata.get("tokenizer.ggml.tokens"), list):
      scores = [-float(i) for i in range(len(file.metadata["tokenizer.ggml.tokens"]))]
      file.metadata |= {"tokenizer.ggml.model": "llama", "tokenizer.ggml.scores": scores}
    with read_or_refused(ValueError, names="model.gguf"):
      config = gguf.config_from_gguf(file)
      _gguf_tokenizer(file, config)
