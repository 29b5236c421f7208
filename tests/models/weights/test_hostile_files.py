"""Model, adapter and tokenizer files of strangers: read as meant, or one sentence."""

import json
import struct

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from tea_jax.models.weights.chat import apply_chat_template
from tea_jax.models.weights.gguf_file import GgufFile
from tea_jax.models.weights.huggingface import read_config, save_pretrained
from tea_jax.models.weights.huggingface_config import config_from_hf
from tea_jax.models.weights.load import load_policy
from tea_jax.models.weights.peft_options import check_options
from tea_jax.models.weights.safetensors_files import SafetensorsFolder
from tea_jax.models.weights.tokenizer import load_tokenizer, turn_end
from tests.models.families import FAMILIES, write_folder
from tests.models.gguf_files import write_gguf
from tests.training import tiny

LLAMA = FAMILIES["llama"]
INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize(
  "field, value",
  [
    ("vocab_size", "32"),
    ("hidden_size", [16]),
    ("num_hidden_layers", 2.5),
    ("num_hidden_layers", 10**9),
    ("num_attention_heads", 0),
    ("max_position_embeddings", True),
    ("rms_norm_eps", float("nan")),
    ("rope_theta", 0),
    ("rope_parameters", "x"),
    ("rope_scaling", {"rope_type": "linear", "factor": -1.0}),
    ("hidden_act", [1]),
    ("eos_token_id", 10**6),
    ("eos_token_id", ["x"]),
    ("tie_word_embeddings", "false"),
    ("architectures", "LlamaForCausalLM"),
  ],
)
def test_config_with_impossible_values_is_refused_by_field(tmp_path, field, value):
  (tmp_path / "config.json").write_text(json.dumps({**LLAMA, field: value}))
  with pytest.raises(ValueError, match=rf"config\.json.*{field}"):
    read_config(tmp_path)


def test_ends_are_what_the_files_say(tmp_path):
  (tmp_path / "config.json").write_text(json.dumps({**LLAMA, "eos_token_id": None}))
  assert read_config(tmp_path)[0].eos_token_ids == ()
  (tmp_path / "generation_config.json").write_text('{"eos_token_id": [3, 1]}')
  assert read_config(tmp_path)[0].eos_token_ids == (3, 1)
  (tmp_path / "generation_config.json").write_text('{"eos_token_id": 1000000}')
  with pytest.raises(ValueError, match=r"generation_config\.json.*eos_token_id"):
    read_config(tmp_path)


@settings(max_examples=200, deadline=None)
@given(
  st.sampled_from(
    sorted({*LLAMA, "rope_scaling", "rope_parameters", "sliding_window", "id2label"})
  ),
  st.sampled_from([None, True, -1, 0, 1.5, 10**400, "x", [], {}, [1], {"a": 1}, float("inf")]),
)
def test_any_field_of_a_config_is_read_or_refused(field, value):
  try:
    config_from_hf({**LLAMA, field: value})
  except ValueError as error:
    event = str(error)
    assert "\n" not in event


@pytest.mark.parametrize("content", [b"[]", b"null", b"", b"\xff\xfe", b"[" * 100_000])
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", INDEX])
def test_malformed_json_is_refused_by_the_name_of_its_file(tmp_path, name, content):
  (tmp_path / "tokenizer.json").write_text("{}")
  (tmp_path / name).write_bytes(content)
  read = {"config.json": read_config, INDEX: SafetensorsFolder}.get(name, load_tokenizer)
  with pytest.raises(ValueError, match=name):
    read(tmp_path)


def _save(folder, name, **tensors):
  arrays = {key: np.full((2, 2), value, np.float32) for key, value in tensors.items()}
  safetensors.numpy.save_file(arrays, folder / name)


def test_index_stays_in_its_folder_and_yields_to_a_whole_file(tmp_path):
  _save(tmp_path, "model-1.safetensors", a=1.0)
  _save(tmp_path, "model-2.safetensors", a=2.0, b=2.0)
  for shard in ("../x.safetensors", "/x.safetensors", "sub/x.safetensors", "evil.py", 3):
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(ValueError, match=INDEX):
      SafetensorsFolder(tmp_path)
  both = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
  (tmp_path / INDEX).write_text(json.dumps({"weight_map": both}))
  with pytest.raises(ValueError, match=r"Tensor a stands in model-1"):
    SafetensorsFolder(tmp_path)
  _save(tmp_path, "model.safetensors", a=3.0)
  assert SafetensorsFolder(tmp_path).read("a", (slice(None),) * 2)[0, 0] == 3.0


def test_buffers_of_any_dtype_are_passed_over(tmp_path):
  arrays = {"h.0.attn.bias": np.ones(2, bool), "a": np.ones(2, np.float32)}
  safetensors.numpy.save_file(arrays, tmp_path / "model.safetensors")
  assert set(SafetensorsFolder(tmp_path, ignored=(".attn.bias",)).shapes()) == {"a"}
  with pytest.raises(ValueError, match=r"attn\.bias.*BOOL"):
    SafetensorsFolder(tmp_path)


def test_weights_that_are_not_finite_are_refused_by_tensor(tmp_path):
  policy = tiny.policy()
  params = {**policy.params, "embed": {"embedding": policy.params["embed"]["embedding"] * np.nan}}
  save_pretrained(tmp_path / "m", policy.config, params, policy.tokenizer)
  with pytest.raises(ValueError, match=r"embed_tokens\.weight.*not finite"):
    load_policy(tmp_path / "m")


def test_code_of_a_tokenizer_is_never_run(tmp_path, monkeypatch):
  tiny.tokenizer().save_pretrained(tmp_path)
  (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
  file = tmp_path / "tokenizer_config.json"
  options = {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}, "tokenizer_class": "Evil"}
  file.write_text(json.dumps(json.loads(file.read_text()) | options))
  monkeypatch.setattr("builtins.input", lambda *_: "y")
  with pytest.raises(ValueError, match="cannot be loaded"):
    load_tokenizer(tmp_path)
  assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
  "template, said",
  [
    ("{{ raise_exception('no system turns') }}", "no system turns.*--data.no-chat"),
    ("{% for %}", "TemplateSyntaxError"),
    ("{{ ''.__class__.__mro__ }}", "SecurityError"),
    ("{{ nope.x }}", "UndefinedError"),
    ("{{ 1 / 0 }}", "ZeroDivisionError"),
    ("{{ 'a' * 10**10 }}", "GB of memory"),
  ],
)
def test_what_a_template_raises_is_one_sentence(template, said):
  tokenizer = tiny.tokenizer()
  tokenizer.chat_template = template
  with pytest.raises(ValueError, match=f"chat template.*{said}"):
    apply_chat_template(tokenizer, [{"role": "user", "content": "hi"}])


def test_templates_give_what_transformers_gives():
  tokenizer = tiny.tokenizer()
  tokenizer.chat_template = (
    "{% set ns = namespace(n=0) %}{%- for m in messages %}{% set ns.n = ns.n + 1 %}"
    "{% generation %}{{ eos_token }}{{ m | tojson }}{{ loop.index }}{% endgeneration %}"
    "{% if loop.last %}{% break %}{% endif %}\n{% endfor %}"
    "{{ ns.n }}{% if add_generation_prompt %}>{% endif %}"
  )
  turns = [{"role": "user", "content": "ä <b> 'q'"}, {"role": "assistant", "content": "x"}]
  for prompted in (False, True):
    expected = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompted)
    assert apply_chat_template(tokenizer, turns, add_generation_prompt=prompted) == expected


def test_the_end_of_a_turn_is_read_from_the_template():
  tokenizer = tiny.tokenizer()
  assert turn_end(tokenizer) is None
  tokenizer.chat_template = "{% for m in messages %}{{ m.content }} <end> {% endfor %}"
  assert turn_end(tokenizer) == tokenizer.eos_token_id
  tokenizer.chat_template = "{% for m in messages %}{{ m.content }} w1 {% endfor %}"
  assert turn_end(tokenizer) is None


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
  pytest.importorskip("gguf")
  return write_gguf(tmp_path_factory.mktemp("gguf") / "good.gguf", LLAMA).read_bytes()


def _text(words):
  return struct.pack("<Q", len(words)) + words


def _with_key(raw, key, kind, value):
  count = struct.unpack("<Q", raw[16:24])[0]
  return (
    raw[:16]
    + struct.pack("<Q", count + 1)
    + _text(key)
    + struct.pack("<I", kind)
    + value
    + raw[24:]
  )


def test_lengths_of_a_gguf_header_are_compared_with_the_file(gguf, tmp_path):
  file = tmp_path / "bad.gguf"
  huge = [_with_key(gguf, b"x", 8, struct.pack("<Q", n)) for n in (2**34, 2**60, 2**63)]
  huge += [gguf[:8] + struct.pack("<Q", 2**60) + gguf[16:]]
  huge += [_with_key(gguf, b"x", 9, struct.pack("<IQ", 9, 2**40))]
  for raw in huge:
    file.write_bytes(raw)
    with pytest.raises(ValueError, match=r"bad\.gguf"):
      GgufFile(file)
  for key, kind, value, said in (
    (b"general.alignment", 4, struct.pack("<I", 7), "alignment"),
    (b"llama.block_count", 4, struct.pack("<I", 1), "twice"),
    (b"split.count", 2, struct.pack("<H", 3), "one of 3 parts"),
  ):
    file.write_bytes(_with_key(gguf, key, kind, value))
    with pytest.raises(ValueError, match=said):
      GgufFile(file)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)), min_size=1, max_size=4))
def test_any_damage_to_a_gguf_header_is_read_or_refused(gguf, tmp_path_factory, changes):
  raw = bytearray(gguf)
  for position, value in changes:
    raw[position % len(raw)] = value
  file = tmp_path_factory.mktemp("damaged") / "bad.gguf"
  file.write_bytes(raw)
  try:
    GgufFile(file)
  except ValueError as error:
    event = str(error)
    assert "bad.gguf" in event


@pytest.mark.parametrize(
  "options",
  [
    {"init_lora_weights": "pissa"},
    {"alora_invocation_tokens": [5]},
    {"use_dora": True},
    {"use_some_future_variant": True},
    {"some_number": 0},
    {"layer_replication": [[0, 2]]},
    {"lora_alpha": float("nan")},
    {"lora_alpha": None},
    {"r": -1},
    {"r": True},
    {"use_rslora": "false"},
    {"alpha_pattern": [1]},
    {"alpha_pattern": {"(": 1}},
    {"alpha_pattern": {"((([a-z_.0-9])*)*)*X": 1}},
  ],
)
def test_adapter_options_that_change_the_arithmetic_are_refused_by_name(options, tmp_path):
  good = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "init_lora_weights": True, "bias": "none"}
  check_options(good | {"some_future_option": None, "use_another": False}, tmp_path)
  with pytest.raises(ValueError, match=next(iter(options))):
    check_options(good | options, tmp_path)


def test_a_killed_save_leaves_nothing_for_ever(tmp_path, monkeypatch):
  policy = tiny.policy()
  left = tmp_path / f".m.{__import__('platform').node() or 'host'}-{2**22 + 1}.saving"
  left.mkdir()
  save_pretrained(tmp_path / "m", policy.config, policy.params, policy.tokenizer)
  save_pretrained(tmp_path / "m", policy.config, policy.params, policy.tokenizer)
  assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_saved_policy_keeps_generation_settings_and_suits_transformers_4(tmp_path):
  write_folder(tmp_path / "m", LLAMA)
  settings = {"temperature": 0.6, "top_k": 20, "eos_token_id": [2, 4]}
  (tmp_path / "m" / "generation_config.json").write_text(json.dumps(settings))
  tokenizer = tiny.tokenizer()
  tokenizer.add_special_tokens({"extra_special_tokens": ["<a>"]})
  save_pretrained(
    tmp_path / "saved", *_of(tmp_path / "m"), tokenizer, generation=settings, dtype="bfloat16"
  )
  saved = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
  assert {name: saved[name] for name in settings} == settings
  options = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
  assert not isinstance(options.get("extra_special_tokens"), list)
  again = load_tokenizer(tmp_path / "saved")
  assert again is not None
  assert again.convert_tokens_to_ids("<a>") in again.all_special_ids


def _of(folder):
  policy = load_policy(folder)
  return policy.config, policy.params
