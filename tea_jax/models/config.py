"""What a decoder is: one frozen description for every supported architecture.

A checkpoint never gets a class method of its own: `hf_config.config_from_hf` reads the HF
`config.json`, and the layers are built from the fields below alone.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

Head = Literal["causal_lm", "sequence_classifier"]
"""What sits on the backbone: a vocabulary head or one scalar score."""


@dataclasses.dataclass(frozen=True)
class RopeScaling:
  """Frequency scaling of rotary positions (Llama 3's, or linear).

  Attributes:
    kind: `"llama3"` or `"linear"`.
    factor: by how much positions are stretched.
    low_frequency_factor, high_frequency_factor, original_max_positions: of `"llama3"`.
  """

  kind: Literal["llama3", "linear"]
  factor: float
  low_frequency_factor: float = 1.0
  high_frequency_factor: float = 4.0
  original_max_positions: int = 8192


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Shape and options of a decoder-only transformer.

  Attributes:
    architecture: HF class name without its head, e.g. `"Llama"`, `"Qwen3"`, `"GPT2"`, `"Gemma"`.
    vocab_size: rows of the embedding, V.
    hidden_size: model width, D.
    intermediate_size: width of the MLP.
    num_layers: number of blocks, L.
    num_heads: query heads.
    num_kv_heads: key and value heads; divides `num_heads`.
    head_dim: width of one head (not always `hidden_size / num_heads`).
    max_positions: longest context.
    norm: `"rms"` or `"layer"`.
    norm_epsilon: added to the variance.
    norm_offset: added to the norm's scale (1.0 for Gemma, which stores scale - 1).
    position: `"rope"` or `"learned"`.
    rope_theta: base of the rotary frequencies.
    rope_scaling: see `RopeScaling`; None for none.
    sliding_window: keys a query may look back on, itself included; None for all.
    activation: of the MLP.
    gated_mlp: gate * up (Llama) or a plain two-layer MLP (GPT-2).
    attention_bias: biases on query, key, value.
    output_bias: bias on the attention's output projection.
    mlp_bias: biases in the MLP.
    query_key_norm: RMS norm on each query and key head before the rotation (Qwen3).
    tie_embeddings: the head is the transposed embedding.
    embedding_scale: multiplies the embeddings (sqrt(D) for Gemma).
    bos_token_id, eos_token_ids, pad_token_id: special ids; several ends are possible.
  """

  architecture: str
  vocab_size: int
  hidden_size: int
  intermediate_size: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  max_positions: int
  norm: Literal["rms", "layer"] = "rms"
  norm_epsilon: float = 1e-5
  norm_offset: float = 0.0
  position: Literal["rope", "learned"] = "rope"
  rope_theta: float = 10000.0
  rope_scaling: RopeScaling | None = None
  sliding_window: int | None = None
  activation: Literal["silu", "gelu_tanh", "gelu"] = "silu"
  gated_mlp: bool = True
  attention_bias: bool = False
  output_bias: bool = False
  mlp_bias: bool = False
  query_key_norm: bool = False
  tie_embeddings: bool = False
  embedding_scale: float = 1.0
  bos_token_id: int | None = None
  eos_token_ids: tuple[int, ...] = ()
  pad_token_id: int | None = None

  def __post_init__(self):
    for name in (
      "vocab_size",
      "hidden_size",
      "intermediate_size",
      "num_layers",
      "num_heads",
      "num_kv_heads",
      "head_dim",
      "max_positions",
    ):
      if getattr(self, name) < 1:
        raise ValueError(f"{name}={getattr(self, name)} of the model must be at least 1.")
    if self.num_heads % self.num_kv_heads:
      raise ValueError(
        f"num_kv_heads={self.num_kv_heads} must divide num_heads={self.num_heads}: every key and "
        "value head serves a whole group of query heads."
      )
    if self.position == "rope" and self.head_dim % 2:
      raise ValueError(f"head_dim={self.head_dim} must be even for rotary positions.")
    if self.sliding_window is not None and self.sliding_window < 1:
      raise ValueError(f"sliding_window={self.sliding_window} must be at least 1, or None.")
