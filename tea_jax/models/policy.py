"""Policy: a model, its weights and its tokenizer, as pure functions of explicit parameters."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tea_jax.models import causal_lm, decoding, shared_prompt
from tea_jax.models.attention import AttentionKind
from tea_jax.models.causal_lm import Params, Remat
from tea_jax.models.config import ModelConfig
from tea_jax.models.decoding import Cache, CompletionCache, Prefill
from tea_jax.models.weights import huggingface
from tea_jax.models.weights.tokenizer import turn_end


@dataclasses.dataclass(frozen=True, eq=False)
class Policy:
  """A language model to sample from and to train.

  Every method takes `params` explicitly, so that it can be differentiated, jitted and called with
  other weights (a reference policy, merged adapters) than the ones the policy carries.

  Attributes:
    config: shape and options of the model.
    params: float32 master weights, a plain nested dict (see `causal_lm`); bfloat16 where they
      stay as they are.
    tokenizer: a `transformers` tokenizer, or None.
    generation: settings of the model's `generation_config.json`, kept when it is saved.
    compute_dtype: of activations and matrix products; norms, softmax and log-probs are float32.
    remat: what the backward pass recomputes, see `causal_lm.run_layers`.
    scan_layers: scan over the stacked layers, or unroll them.
    attention: see `attention.causal_attention`.
    mesh: over which `group_hidden_states` and the head split their groups; None on one device.
  """

  config: ModelConfig
  params: Params
  tokenizer: Any = None
  generation: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  compute_dtype: Literal["float32", "bfloat16"] = "float32"
  remat: Remat = "none"
  scan_layers: bool = True
  attention: AttentionKind = "auto"
  mesh: jax.sharding.Mesh | None = None

  @property
  def dtype(self) -> Any:
    return jnp.dtype(self.compute_dtype)

  def hidden_states(
    self, params: Params, tokens: Int[Array, "B T"], lengths: Int[Array, "B"] | None = None
  ) -> Float[Array, "B T D"]:
    """Final hidden states of left-aligned rows; see `causal_lm.hidden_states`."""
    return causal_lm.hidden_states(
      self.config,
      params,
      tokens,
      lengths,
      dtype=self.dtype,
      scan=self.scan_layers,
      remat=self.remat,
      attention=self.attention,
    )

  def group_hidden_states(
    self,
    params: Params,
    prompt_tokens: Int[Array, "P T_p"],
    prompt_lengths: Int[Array, "P"],
    completion_tokens: Int[Array, "P m T_c"],
  ) -> Float[Array, "P m T_c D"]:
    """States that predict each completion token; see `shared_prompt.group_hidden_states`."""
    return shared_prompt.group_hidden_states(
      self.config,
      params,
      prompt_tokens,
      prompt_lengths,
      completion_tokens,
      dtype=self.dtype,
      scan=self.scan_layers,
      remat=self.remat,
      attention=self.attention,
      mesh=self.mesh,
    )

  def logits(self, params: Params, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
    """Float32 logits of hidden states; see `causal_lm.logits`."""
    return causal_lm.logits(self.config, params, hidden)

  def decode_weights(self, params: Params) -> Params:
    """`params` laid out for `decode_step`; see `decoding.decode_weights`."""
    return decoding.decode_weights(self.config, params, self.dtype)

  def prefill(
    self, params: Params, tokens: Int[Array, "P T_p"], lengths: Int[Array, "P"]
  ) -> Prefill:
    """Keys and values of the prompts, and the state that predicts their first tokens."""
    return decoding.prefill(
      self.config, params, tokens, lengths, dtype=self.dtype, attention=self.attention
    )

  def decode_step(
    self,
    weights: Params,
    tokens: Int[Array, "R"],
    step: Int[Array, ""],
    prompt_lengths: Int[Array, "P"],
    prompt_cache: Cache,
    completion_cache: CompletionCache,
  ) -> tuple[Float[Array, "R D"], CompletionCache]:
    """One token of every rollout, on `decode_weights`; see `decoding.decode_step`."""
    return decoding.decode_step(
      self.config, weights, tokens, step, prompt_lengths, prompt_cache, completion_cache
    )

  def save_pretrained(self, path: Any, params: Params | None = None, **options: Any) -> None:
    """Writes a Hugging Face folder of `params`, or of the weights carried; see `hf`."""
    weights = self.params if params is None else params
    options = {"generation": self.generation, **options}
    huggingface.save_pretrained(path, self.config, weights, self.tokenizer, **options)

  @functools.cached_property
  def stop_tokens(self) -> tuple[int, ...]:
    """Ids that end a completion: the config's, the tokenizer's, and the end of a chat turn."""
    found = list(self.config.eos_token_ids)
    if self.tokenizer is not None:
      found += [getattr(self.tokenizer, "eos_token_id", None), turn_end(self.tokenizer)]
    vocabulary = range(self.config.vocab_size)
    return tuple(dict.fromkeys(token for token in found if token in vocabulary))
