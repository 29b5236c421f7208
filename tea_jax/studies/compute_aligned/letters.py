"""A small GPT-2 that reads a letter a token: made here, trained in minutes on a laptop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tea_jax.models.causal_lm import init_params
from tea_jax.models.config import ModelConfig
from tea_jax.models.policy import Policy
from tea_jax.runtime.keys import make_key

END, START = "<end>", "<start>"


def letter_policy(
  letters: Sequence[str],
  *,
  words: Sequence[str] = (),
  hidden_size: int = 128,
  num_layers: int = 3,
  max_positions: int = 128,
  seed: int = 0,
) -> Policy:
  """An untrained GPT-2 in float32 with a token for each letter and each word.

  Args:
    letters: what text is made of; anything else reads as the start token, white space as nothing.
    words: read as one token each, and left out when text is decoded without special tokens.
    hidden_size, num_layers, max_positions: of the model; heads have 32 channels.
    seed: of the initial weights.
  """
  vocabulary = [END, START, *words, *letters]
  heads = hidden_size // 32
  config = ModelConfig(
    architecture="GPT2",
    vocab_size=len(vocabulary),
    hidden_size=hidden_size,
    intermediate_size=4 * hidden_size,
    num_layers=num_layers,
    num_heads=heads,
    num_kv_heads=heads,
    head_dim=32,
    max_positions=max_positions,
    eos_token_ids=(0,),
    pad_token_id=0,
    tie_embeddings=True,
    norm="layer",
    position="learned",
    gated_mlp=False,
    mlp_bias=True,
    attention_bias=True,
    output_bias=True,
    activation="gelu_tanh",
  )
  params = init_params(config, make_key(seed))
  tokenizer = _letter_tokenizer(vocabulary, special=(END, START, *words))
  return Policy(config=config, params=params, tokenizer=tokenizer)


def _letter_tokenizer(vocabulary: Sequence[str], *, special: Sequence[str]) -> Any:
  import tokenizers
  from transformers import PreTrainedTokenizerFast

  numbered = {word: index for index, word in enumerate(vocabulary)}
  letters = tokenizers.Tokenizer(tokenizers.models.WordLevel(numbered, unk_token=START))
  letters.add_special_tokens(list(special))
  letters.normalizer = tokenizers.normalizers.Replace(tokenizers.Regex(r"\s"), "")
  letters.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
  letters.decoder = tokenizers.decoders.Fuse()
  return PreTrainedTokenizerFast(
    tokenizer_object=letters, eos_token=END, unk_token=START, bos_token=START
  )
