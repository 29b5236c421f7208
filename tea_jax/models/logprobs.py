"""Log-probabilities of tokens: the one function that trainer and sampler agree on.

The temperature is inside, the softmax is over the full vocabulary in float32, and `[B, T, V]` never
exists (see `fused_head`).

Axes: B rows, T time, P prompts, m rollouts of each, T_c completion time.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Protocol

import chex
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from tea_jax.models.causal_lm import Params, head_weight
from tea_jax.models.fused_head import HeadOptions, default_chunk, fused_logprobs
from tea_jax.models.policy import Policy
from tea_jax.models.sharding import constrain_rows, row_shards


class Groups(Protocol):
  """What `group_logprobs` reads of `tea_jax.rollout.types.Rollouts`."""

  @property
  def prompt_tokens(self) -> Int[Array, "P T_p"]: ...
  @property
  def prompt_lengths(self) -> Int[Array, "P"]: ...
  @property
  def completion_tokens(self) -> Int[Array, "P m T_c"]: ...
  @property
  def completion_lengths(self) -> Int[Array, "P m"]: ...


class TokenLogprobs(NamedTuple):
  """Per-token log-probabilities, 0 where there is no completion token.

  Attributes:
    logprobs: float32, in the shape of the tokens.
    entropy: of each token's distribution at the temperature, or None if not asked for.
  """

  logprobs: Float[Array, "*batch T"]
  entropy: Float[Array, "*batch T"] | None


def token_logprobs(
  policy: Policy,
  params: Params,
  tokens: Int[Array, "B T"],
  prompt_lengths: Int[Array, "B"],
  lengths: Int[Array, "B"],
  *,
  temperature: float = 1.0,
  with_entropy: bool = False,
  chunk: int | None = None,
) -> TokenLogprobs:
  """Log-probability of each completion token given all tokens before it.

  Args:
    policy: the model; its own `params` are not used.
    params: differentiable weights.
    tokens: `[B, T]` rows of prompt, completion, padding.
    prompt_lengths: `[B]`, at least 1: tokens from here on are scored.
    lengths: `[B]` of prompt and completion together.
    temperature: divides the logits; positive.
    with_entropy: also return entropies.
    chunk: tokens that go through the head at a time; by default about 128 MiB of logits.

  Returns:
    `TokenLogprobs` of `[B, T]`, at the place of the token that is scored.

  Raises:
    ValueError: if the temperature is not positive.
  """
  tokens, prompt_lengths, lengths = map(jnp.asarray, (tokens, prompt_lengths, lengths))
  chex.assert_rank([tokens, prompt_lengths, lengths], [2, 1, 1])
  hidden = policy.hidden_states(params, tokens, lengths)
  places = jnp.arange(1, tokens.shape[1])
  valid = (places >= prompt_lengths[:, None]) & (places < lengths[:, None])
  scored = _score(
    policy, params, hidden[:, :-1], tokens[:, 1:], valid, temperature, with_entropy, chunk
  )
  # Nothing predicts the first token of a row.
  return jax.tree.map(lambda value: jnp.pad(value, ((0, 0), (1, 0))), scored)


def group_logprobs(
  policy: Policy,
  params: Params,
  rollouts: Groups,
  *,
  temperature: float = 1.0,
  with_entropy: bool = False,
  chunk: int | None = None,
) -> TokenLogprobs:
  """Log-probabilities of the completions of groups; each shared prompt is computed once.

  Args:
    policy: the model; its own `params` are not used.
    params: differentiable weights.
    rollouts: prompts and completions; nothing else of it is read.
    temperature, with_entropy, chunk: see `token_logprobs`.

  Returns:
    `TokenLogprobs` of `[P, m, T_c]`, 0 on padding.

  Raises:
    ValueError: if the temperature is not positive.
  """
  tokens = jnp.asarray(rollouts.completion_tokens)
  lengths = jnp.asarray(rollouts.completion_lengths)
  chex.assert_rank([tokens, lengths], [3, 2])
  hidden = policy.group_hidden_states(
    params, jnp.asarray(rollouts.prompt_tokens), jnp.asarray(rollouts.prompt_lengths), tokens
  )
  valid = jnp.arange(tokens.shape[-1]) < lengths[..., None]
  return _score(policy, params, hidden, tokens, valid, temperature, with_entropy, chunk)


def _score(
  policy: Policy,
  params: Params,
  hidden: Float[Array, "*batch D"],
  targets: Int[Array, "*batch"],
  valid: Array,
  temperature: float,
  with_entropy: bool,
  chunk: int | None,
) -> TokenLogprobs:
  if not (math.isfinite(temperature) and temperature > 0):
    raise ValueError(
      f"temperature={temperature} must be positive: log-probabilities need a distribution"
    )
  weight, vocabulary_first = head_weight(policy.config, params)
  count = targets.size
  chunk = min(chunk or default_chunk(count, policy.config.vocab_size), count)
  options = HeadOptions(vocabulary_first, float(temperature), with_entropy, chunk)
  shards = row_shards(policy.mesh)
  if shards > 1 and targets.shape[0] % shards == 0:
    own = options._replace(chunk=-(-chunk // shards))
    scored: Any = _score_by_shard(policy.mesh, shards, weight, hidden, targets, valid, own)
  else:
    scored = fused_logprobs(
      hidden.reshape(count, -1), weight, targets.reshape(-1), valid.reshape(-1), options
    )
  logprobs, entropy = scored
  logprobs = logprobs.reshape(targets.shape)
  return TokenLogprobs(logprobs, entropy.reshape(targets.shape) if with_entropy else None)


def _score_by_shard(
  mesh: Any, shards: int, weight: Array, hidden: Array, targets: Array, valid: Array, options: Any
) -> tuple[Array, Array]:
  """`fused_logprobs` of each device's own tokens; a chunk never mixes tokens of two devices."""
  if mesh.shape["fsdp"] > 1:
    # Gathered once, not in every chunk; the vocabulary stays split over `tensor`.
    vocabulary = weight.shape[0 if options.vocabulary_first else 1]
    tensor = None if vocabulary % mesh.shape["tensor"] else "tensor"
    spec = PartitionSpec(tensor, None) if options.vocabulary_first else PartitionSpec(None, tensor)
    weight = jax.lax.with_sharding_constraint(weight, NamedSharding(mesh, spec))

  def split(x: Array, *rest: int) -> Array:
    return constrain_rows(x.reshape(shards, -1, *rest), mesh)

  return jax.vmap(
    lambda *own: fused_logprobs(own[0], weight, own[1], own[2], options),
    spmd_axis_name=("data", "fsdp"),
  )(split(hidden, hidden.shape[-1]), split(targets), split(valid))
