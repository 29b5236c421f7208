"""A model and a tokenizer that a trainer of the torch world starts with in a second."""

from __future__ import annotations

import string
from typing import Any

ALPHABET = string.ascii_lowercase + " "


def tiny_llama(seed: int = 0) -> Any:
  """A LlamaForCausalLM of some 10k parameters over `ALPHABET`."""
  import torch
  from transformers import LlamaConfig, LlamaForCausalLM

  torch.manual_seed(seed)
  config = LlamaConfig(
    vocab_size=len(ALPHABET) + 2,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    pad_token_id=0,
    bos_token_id=None,
    eos_token_id=1,
  )
  return LlamaForCausalLM(config)


def letter_tokenizer() -> Any:
  """A tokenizer with a token for each letter; 0 pads and 1 ends."""
  from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
  from transformers import PreTrainedTokenizerFast

  vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", *ALPHABET])}
  tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
  tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
  tokenizer.decoder = decoders.Fuse()
  return PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", padding_side="left"
  )


def vowels(completions: list[str], **_: Any) -> list[float]:
  """A reward: the vowels of each completion, less a tenth for each letter."""
  return [sum(letter in "aeiou" for letter in c) - 0.1 * len(c) for c in completions]
