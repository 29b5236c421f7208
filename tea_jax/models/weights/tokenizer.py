"""Tokenizers: loaded from a folder or built from GGUF metadata, and chat prompts as token ids.

A tokenizer is a `transformers.PreTrainedTokenizerFast`; nothing here needs torch.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, processors
from tokenizers import pre_tokenizers as pre
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tea_jax.models.weights.chat import apply_chat_template
from tea_jax.runtime.files import check_links, read_json
from tea_jax.runtime.secrets import brief

# How the text is cut before the merges, by GGUF's `tokenizer.ggml.pre`.
_LLAMA3_SPLIT = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
  r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_SPLIT = _LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
_PRE_KINDS = {
  "smollm": "smollm",
  "gpt-2": "gpt-2",
  "default": "gpt-2",
  "llama-bpe": "llama-bpe",
  "llama3": "llama-bpe",
  "llama-v3": "llama-bpe",
  "qwen2": "qwen2",
  "deepseek-r1-qwen": "qwen2",
}
_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
_JSON_FILES = (
  "tokenizer.json",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "added_tokens.json",
  "vocab.json",
)
_MARK = "tea7jax"  # stands for an assistant's answer
# GGUF's `tokenizer.ggml.token_type`.
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4


def load_tokenizer(folder: str | os.PathLike[str]) -> PreTrainedTokenizerFast | None:
  """The tokenizer that lies beside the weights of a model folder; None if there is none.

  Raises:
    ValueError: if its files are damaged, or it needs code of its own.
  """
  path = pathlib.Path(folder)
  if not any((path / name).is_file() for name in _FILES):
    return None
  check_links(path)
  for name in _JSON_FILES:
    if (path / name).is_file():
      read_json(path / name)
  try:
    # Code that the folder brings along (`auto_map`) is never run, nor is the user asked.
    return AutoTokenizer.from_pretrained(
      os.fspath(path), trust_remote_code=False, local_files_only=True
    )
  except Exception as error:
    reason = f"{type(error).__name__}: {brief(error)}"
    raise ValueError(f"the tokenizer of {path} cannot be loaded: {reason}") from error


def check_vocabulary(tokenizer: Any, vocab_size: int, source: object) -> None:
  """Refuses a tokenizer whose ordinary tokens the model's embedding does not have.

  Raises:
    ValueError: naming the first such token.
  """
  beyond = [(index, token) for token, index in tokenizer.get_vocab().items() if index >= vocab_size]
  # Some fine-tuned models come with a padding token that their embedding lacks; it is never used.
  wrong = sorted(pair for pair in beyond if pair[1] not in tokenizer.all_special_tokens)
  if wrong:
    raise ValueError(
      f"the tokenizer of {source} has {len(wrong)} tokens beyond the model's vocab_size="
      f"{vocab_size}, the first being {wrong[0][1]!r} with id {wrong[0][0]}; it belongs to another "
      "model"
    )


def turn_end(tokenizer: Any) -> int | None:
  """The special token that the chat template writes behind the assistant's turn, if any."""
  if getattr(tokenizer, "chat_template", None) is None:
    return None
  turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _MARK}]
  try:
    _, mark, rest = apply_chat_template(tokenizer, turns).rpartition(_MARK)
  except ValueError:  # a template of another kind of conversation
    return None
  ids = tokenizer(rest.lstrip(), add_special_tokens=False)["input_ids"] if mark else []
  special = {*tokenizer.all_special_ids, *getattr(tokenizer, "added_tokens_decoder", {})}
  return int(ids[0]) if ids and ids[0] in special else None


def tokenizer_from_gguf(metadata: Mapping[str, Any]) -> PreTrainedTokenizerFast:
  """Builds the tokenizer, its special tokens and chat template from GGUF metadata.

  Args:
    metadata: of `GgufFile`.

  Raises:
    ValueError: for an unknown tokenizer model or pre-tokenizer, naming what is supported.
  """

  def get(key: str, default: Any = None) -> Any:
    return metadata.get(f"tokenizer.ggml.{key}", default)

  kind = get("model")
  if kind not in ("gpt2", "llama"):
    raise ValueError(
      f"tokenizer.ggml.model={kind!r} is not supported; supported: gpt2 (byte-level BPE), "
      "llama (SentencePiece BPE)."
    )
  tokens: list[str] = _listed(get, "tokens", str)
  types: list[int] = _listed(get, "token_type", int, default=[1] * len(tokens))
  if len(types) != len(tokens):
    raise ValueError(
      f"tokenizer.ggml.token_type has {len(types)} entries for {len(tokens)} tokens."
    )
  backend = _byte_level(get, tokens) if kind == "gpt2" else _sentence_piece(get, tokens, types)
  backend.add_special_tokens(_added(tokens, types, _CONTROL, special=True))
  backend.add_tokens(_added(tokens, types, _USER_DEFINED, special=False))
  # The converters write these flags only where they differ from the tokenizer's own habit.
  begins = get("add_bos_token", kind == "llama" or _PRE_KINDS.get(get("pre")) == "llama-bpe")
  special = {}
  for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")):
    index = get(f"{key}_token_id")
    if index is None:
      continue
    if not isinstance(index, int) or not 0 <= index < len(tokens):
      raise ValueError(
        f"tokenizer.ggml.{key}_token_id={index!r} is not one of the {len(tokens)} tokens."
      )
    special[f"{name}_token"] = tokens[index]
  if begins and "bos_token" in special:
    bos = special["bos_token"]
    backend.post_processor = processors.TemplateProcessing(
      single=f"{bos} $A",
      pair=f"{bos} $A {bos}:1 $B:1",
      special_tokens=[(bos, get("bos_token_id"))],
    )
  context = metadata.get(f"{metadata.get('general.architecture')}.context_length")
  if context is not None:
    special["model_max_length"] = context
  tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=backend, clean_up_tokenization_spaces=False, **special
  )
  tokenizer.chat_template = metadata.get("tokenizer.chat_template")
  return tokenizer


def _byte_level(get: Any, tokens: list[str]) -> Tokenizer:
  """Byte-level BPE of the GPT-2 kind."""
  name = get("pre", "default")
  if name not in _PRE_KINDS:
    raise ValueError(
      f"tokenizer.ggml.pre={name!r} is not supported; supported: {', '.join(sorted(_PRE_KINDS))}."
    )
  kind = _PRE_KINDS[name]
  # A symbol holds no raw space, so the first one separates the two sides.
  merges = [tuple(merge.split(" ", 1)) for merge in _listed(get, "merges", str)]
  vocabulary = _vocabulary(tokens)
  # Llama 3 takes a word that is a token whole, whatever the merges say.
  backend = Tokenizer(
    models.BPE(vocab=vocabulary, merges=merges, ignore_merges=kind == "llama-bpe")
  )
  prefix = bool(get("add_space_prefix", False))
  if kind == "llama-bpe" or kind == "qwen2":
    split = Regex(_LLAMA3_SPLIT if kind == "llama-bpe" else _QWEN2_SPLIT)
    cuts = [
      pre.Split(split, behavior="isolated"),
      pre.ByteLevel(add_prefix_space=prefix, use_regex=False),
    ]
  else:
    digits = [pre.Digits(individual_digits=True)] if kind == "smollm" else []
    cuts = [*digits, pre.ByteLevel(add_prefix_space=prefix, use_regex=True)]
  if kind == "qwen2":
    backend.normalizer = normalizers.NFC()
  backend.pre_tokenizer = pre.Sequence(cuts)
  backend.decoder = decoders.ByteLevel()
  return backend


def _sentence_piece(get: Any, tokens: list[str], types: list[int]) -> Tokenizer:
  """SentencePiece BPE (Llama 2, Mistral, Gemma): the scores rank the merges."""
  vocabulary = _vocabulary(tokens)
  scores: list[float] = _listed(get, "scores", float)
  merges = []
  for piece, score in zip(tokens, scores):
    for cut in range(1, len(piece)):
      left, right = piece[:cut], piece[cut:]
      if left in vocabulary and right in vocabulary:
        merges.append((-score, vocabulary[left], vocabulary[right], (left, right)))
  merges.sort()
  unknown = [token for token, kind in zip(tokens, types) if kind == _UNKNOWN]
  backend = Tokenizer(
    models.BPE(
      vocab=vocabulary,
      merges=[merge[-1] for merge in merges],
      unk_token=unknown[0] if unknown else None,
      fuse_unk=True,
      byte_fallback=True,
    )
  )
  space = normalizers.Replace(" ", "▁")
  prefixed = get("add_space_prefix", True)
  backend.normalizer = (
    normalizers.Sequence([normalizers.Prepend("▁"), space]) if prefixed else space
  )
  cleaning = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
  backend.decoder = decoders.Sequence(
    [*cleaning, decoders.Strip(" ", 1, 0)] if prefixed else cleaning
  )
  return backend


def _listed(get: Any, key: str, kind: type, *, default: Any = None) -> list[Any]:
  """A list of the metadata, checked."""
  values = get(key) or default
  if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
    found = "nothing" if values is None else type(values).__name__
    raise ValueError(f"tokenizer.ggml.{key} must be a list of {kind.__name__}, not {found}.")
  return values


def _vocabulary(tokens: list[str]) -> dict[str, int]:
  vocabulary = {token: index for index, token in enumerate(tokens)}
  if len(vocabulary) != len(tokens):
    raise ValueError(
      f"The GGUF vocabulary has {len(tokens) - len(vocabulary)} duplicate tokens of {len(tokens)}."
    )
  return vocabulary


def _added(tokens: list[str], types: list[int], kind: int, *, special: bool) -> list[AddedToken]:
  return [
    AddedToken(token, special=special, normalized=False)
    for token, its_kind in zip(tokens, types)
    if its_kind == kind
  ]
