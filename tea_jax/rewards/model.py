"""Reward models: a sequence classifier scores the conversation (prompt, completion).

The reward model has its own tokenizer and chat template. A conversation is rendered by the
template and then tokenized without adding special tokens (a template writes its own BOS); its score
is the one at its last token, index length - 1, never at the first id that looks like an end token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import numpy as np

from tea_jax.models import sharding
from tea_jax.models.weights.chat import apply_chat_templates

Message = dict[str, str]


class ModelReward:
  """Scores completions by a sequence classifier in few compiled shapes.

  Rows are sorted by length and batched; each batch is padded to the next multiple of
  `length_multiple` and the last one to `batch_size` rows, so at most
  `max_length / length_multiple` shapes compile.

  Multi-turn prompts come in the column `messages` (lists of `{"role", "content"}`); without it, or
  where its entry is None, a prompt is one user message.
  """

  row_wise = True

  def __init__(
    self,
    score: Callable[[Any, Any, Any], Any],
    params: Any,
    tokenizer: Any,
    *,
    name: str = "model",
    batch_size: int = 16,
    max_length: int = 4096,
    length_multiple: int = 128,
    mesh: jax.sharding.Mesh | None = None,
  ):
    """Args:
    score: `(params, tokens [B, T], lengths [B]) -> [B]`, of a left-aligned batch.
    params: weights of the reward model.
    tokenizer: the reward model's own, with a chat template.
    name: for errors and logs.
    batch_size: rows scored at once.
    max_length: tokens of the longest conversation that may be scored.
    length_multiple: granularity of padded lengths.
    mesh: of the devices that the weights are spread over, and the rows with them; None on one.
    """
    if batch_size < 1 or length_multiple < 1 or max_length < 1:
      raise ValueError(
        f"batch_size={batch_size}, max_length={max_length} and "
        f"length_multiple={length_multiple} must all be at least 1"
      )
    if getattr(tokenizer, "chat_template", None) is None:
      raise ValueError(
        f"the tokenizer of reward model '{name}' has no chat template; "
        "set tokenizer.chat_template to the one it was trained with"
      )
    self.name = name
    self.params = params
    self.tokenizer = tokenizer
    shards = sharding.row_shards(mesh)
    self.batch_size = -(-batch_size // shards) * shards
    self._rows = None if mesh is None else sharding.batch_sharding(mesh)
    self.max_length = max_length
    self.length_multiple = length_multiple
    self._score = jax.jit(score)
    pad = getattr(tokenizer, "pad_token_id", None)
    self._pad = 0 if pad is None else pad

  def __call__(
    self,
    prompts: Sequence[str],
    completions: Sequence[str],
    messages: Sequence[list[Message] | None] | None = None,
  ) -> np.ndarray:
    turns = messages if messages is not None else [None] * len(prompts)
    rows = self.tokenize(
      [
        [
          *(turn or [{"role": "user", "content": prompt}]),
          {"role": "assistant", "content": completion},
        ]
        for prompt, completion, turn in zip(prompts, completions, turns, strict=True)
      ]
    )
    self._check_lengths(rows)
    scores = np.empty((len(rows),), np.float64)
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    for start in range(0, len(order), self.batch_size):
      batch = order[start : start + self.batch_size]
      scores[batch] = self._score_batch([rows[index] for index in batch])
    return scores

  def tokenize(self, conversations: Sequence[list[Message]]) -> list[list[int]]:
    """Token ids of conversations that end with the assistant's turn."""
    rows = [
      list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
      for text in apply_chat_templates(self.tokenizer, conversations)
    ]
    bos = getattr(self.tokenizer, "bos_token_id", None)
    doubled = bos is not None and any(tokens[:2] == [bos, bos] for tokens in rows)
    if doubled and bos != self.tokenizer.eos_token_id:
      raise ValueError(f"the chat template of reward model '{self.name}' writes two BOS tokens")
    return rows

  def _check_lengths(self, rows: Sequence[Sequence[int]]) -> None:
    for index, row in enumerate(rows):
      if not 0 < len(row) <= self.max_length:
        error = ValueError(
          f"a conversation has {len(row)} tokens, but reward model '{self.name}' scores "
          f"1 to {self.max_length}; shorten max_completion_length or raise max_length"
        )
        error.row = index  # pyright: ignore[reportAttributeAccessIssue]
        raise error

  def _score_batch(self, rows: Sequence[Sequence[int]]) -> np.ndarray:
    longest = max(len(row) for row in rows)
    width = min(self.max_length, -(-longest // self.length_multiple) * self.length_multiple)
    tokens = np.full((self.batch_size, width), self._pad, np.int32)
    lengths = np.ones((self.batch_size,), np.int32)
    for index, row in enumerate(rows):
      tokens[index, : len(row)] = row
      lengths[index] = len(row)
    on_devices = jax.device_put((tokens, lengths), self._rows)
    scores = jax.device_get(self._score(self.params, *on_devices))
    return np.asarray(scores, np.float64)[: len(rows)]


def load_model_reward(
  name_or_path: str,
  *,
  compute_dtype: Literal["float32", "bfloat16"] = "bfloat16",
  param_dtype: str = "bfloat16",
  batch_size: int = 16,
  max_length: int = 4096,
  length_multiple: int = 128,
  mesh: jax.sharding.Mesh | None = None,
) -> ModelReward:
  """Loads a reward model (an HF `...ForSequenceClassification` with one label).

  Args:
    name_or_path: hub id or folder, e.g. `Skywork/Skywork-Reward-V2-Llama-3.1-8B`.
    compute_dtype: of activations; the score itself is float32.
    param_dtype: of the weights, which are never trained: 16 GB instead of 32 for 8B parameters.
    batch_size, max_length, length_multiple, mesh: see `ModelReward`.
  """
  from tea_jax.models.weights.load import load_sequence_classifier

  classifier = load_sequence_classifier(
    name_or_path, compute_dtype=compute_dtype, param_dtype=param_dtype, mesh=mesh
  )
  return ModelReward(
    classifier.score,
    classifier.params,
    classifier.tokenizer,
    name=name_or_path.rstrip("/").rsplit("/", 1)[-1],
    batch_size=batch_size,
    max_length=max_length,
    length_multiple=length_multiple,
    mesh=mesh,
  )
