"""Reward models: the decoder's backbone with one scalar head.

The layout of Hugging Face's `*ForSequenceClassification` with one label, such as Skywork-Reward-V2.
The score is read at the last valid token, found from the row's length: the id of padding may be
that of the end token, or occur inside the text.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from tea_jax.models import causal_lm
from tea_jax.models.causal_lm import Backbone, Linear, Params, pure_params
from tea_jax.models.config import ModelConfig
from tea_jax.models.weights import huggingface


class SequenceClassifierModule(Backbone):
  """The backbone and a head of one number, without bias."""

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
    super().__init__(config, rngs=rngs)
    self.score = Linear((config.hidden_size, 1), bias=False, rngs=rngs)


@dataclasses.dataclass(frozen=True, eq=False)
class SequenceClassifier:
  """A reward model: config, weights and tokenizer, as pure functions of explicit parameters.

  Attributes:
    config: shape and options of the backbone.
    params: float32 weights, a plain nested dict with `score.kernel [D, 1]`.
    tokenizer: its own `transformers` tokenizer, which need not be the policy's, or None.
    compute_dtype: of the backbone; the score is float32.
    scan_layers: scan over the stacked layers, or unroll them.
  """

  config: ModelConfig
  params: Params
  tokenizer: Any = None
  compute_dtype: str = "float32"
  scan_layers: bool = True

  def score(
    self, params: Params, tokens: Int[Array, "B T"], lengths: Int[Array, "B"]
  ) -> Float[Array, "B"]:
    """Scores of left-aligned rows; see `score`."""
    return score(
      self.config,
      params,
      tokens,
      lengths,
      dtype=jnp.dtype(self.compute_dtype),
      scan=self.scan_layers,
    )

  def save_pretrained(self, path: Any, params: Params | None = None, **options: Any) -> None:
    """Writes the Hugging Face folder; see `huggingface.save_pretrained`."""
    weights = self.params if params is None else params
    huggingface.save_pretrained(
      path, self.config, weights, self.tokenizer, head="sequence_classifier", **options
    )


def score(
  config: ModelConfig,
  params: Params,
  tokens: Int[Array, "B T"],
  lengths: Int[Array, "B"],
  *,
  dtype: Any = jnp.float32,
  scan: bool = True,
) -> Float[Array, "B"]:
  """Scalar score of each row, read at index `lengths - 1`.

  Args:
    config: the backbone.
    params: its parameters, with `score.kernel`.
    tokens: `[B, T]`, padded to the right with any id.
    lengths: `[B]` valid tokens, at least 1.
    dtype: compute dtype of the backbone.
    scan: scan over the layers, or unroll them.

  Returns:
    `[B]` float32.
  """
  chex.assert_rank([tokens, lengths], [2, 1])
  chex.assert_equal_shape_prefix([tokens, lengths], 1)
  hidden = causal_lm.hidden_states(config, params, tokens, lengths, dtype=dtype, scan=scan)
  last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
  kernel = params["score"]["kernel"].astype(last.dtype)
  return jnp.matmul(last, kernel, preferred_element_type=jnp.float32)[:, 0]


def abstract_classifier_params(config: ModelConfig) -> Params:
  """The tree of the parameters as `jax.ShapeDtypeStruct`s; allocates nothing."""
  return jax.eval_shape(
    lambda: pure_params(SequenceClassifierModule(config, rngs=nnx.Rngs(jax.random.key(0))))
  )
