"""The supervised update: scores of a batch of pairs, their loss and gradient, and what is logged.

Micro-batches, clipping, skipping and shardings are those of the reinforcement-learning update.

Axes: B pairs, T tokens of prompt, completion and padding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from tea_jax.models.logprobs import token_logprobs
from tea_jax.models.lora import LoraConfig
from tea_jax.models.policy import Policy
from tea_jax.models.rivals import gold_tokens
from tea_jax.runs.optimizer import OptimizerConfig
from tea_jax.runs.supervised import SupervisedObjectiveConfig
from tea_jax.training.learner import TrainedPolicy, trained_policy, without_schedule
from tea_jax.training.micro_batches import summed_gradient
from tea_jax.training.optimizer import apply_gradient
from tea_jax.training.supervised_objective import TokenScores, pair_losses, pair_weights

Tree = Any
# A pair whose weight is below this learns next to nothing more.
_SATURATED = 0.01


class PairBatch(NamedTuple):
  """Pairs of one update; rows without a completion fill up a batch and do not count.

  Attributes:
    tokens: `[B, T]` prompt, completion, padding.
    prompt_lengths, lengths: `[B]`, of the prompt and of the whole pair.
    keys: `[B]` PRNG keys of the rivals; None where none are drawn.
  """

  tokens: Int[Array, "B T"]
  prompt_lengths: Int[Array, "B"]
  lengths: Int[Array, "B"]
  keys: Array | None = None


class SupervisedUpdate(NamedTuple):
  """What one update returns.

  Attributes:
    trainable: new parameters; the old ones if the update was skipped.
    optimizer_state: of the new parameters.
    metrics: scalars, see `make_supervised_update`.
  """

  trainable: Tree
  optimizer_state: optax.OptState
  metrics: dict[str, Float[Array, ""]]


class SupervisedFunctions(NamedTuple):
  """The compiled functions of a supervised run.

  Attributes:
    trained: what is trained of which model.
    update: see `make_supervised_update`.
    evaluate: see `make_supervised_evaluate`.
  """

  trained: TrainedPolicy
  update: Callable[..., SupervisedUpdate]
  evaluate: Callable[..., tuple[Array, Array]]


_FUNCTIONS: dict[Any, SupervisedFunctions] = {}
_KEPT = 8


def supervised_functions(
  policy: Policy,
  lora: LoraConfig | None,
  objective: SupervisedObjectiveConfig,
  optimizer: OptimizerConfig,
  mesh: jax.sharding.Mesh | None = None,
) -> SupervisedFunctions:
  """The functions of a run, reused if one of the same shapes was made in this process.

  Args:
    policy: the model; its weights are not kept.
    lora: adapters that are trained, or None for all weights.
    objective, optimizer: of the run; learning rate and schedule are not part of the functions.
    mesh: of the devices; None on one.
  """
  optimizer = without_schedule(optimizer)
  fields = {f.name: getattr(policy, f.name) for f in dataclasses.fields(policy)}
  del fields["params"], fields["tokenizer"], fields["generation"]
  key = (*fields.items(), lora, objective, optimizer, mesh)
  if key not in _FUNCTIONS:
    while len(_FUNCTIONS) >= _KEPT:
      _FUNCTIONS.pop(next(iter(_FUNCTIONS)))
    trained = trained_policy(policy, lora, optimizer, mesh)
    _FUNCTIONS[key] = SupervisedFunctions(
      trained,
      make_supervised_update(trained, objective, optimizer),
      make_supervised_evaluate(trained, objective),
    )
  return _FUNCTIONS[key]


def make_supervised_update(
  trained: TrainedPolicy,
  objective: SupervisedObjectiveConfig,
  optimizer: OptimizerConfig,
) -> Callable[..., SupervisedUpdate]:
  """The jitted update of a supervised objective.

  Args:
    trained: what is trained of which model.
    objective, optimizer: see there; learning rate and schedule are not read.

  Returns:
    `update(trainable, optimizer_state, frozen, batch, learning_rate) -> SupervisedUpdate`, which
    donates the first two. Its metrics: loss, grad_norm, skipped, and those of `pair_metrics`.
  """

  def loss_of(trainable: Tree, frozen: Tree, micro: dict[str, Array]):
    losses, log_p = _losses(trained.policy, trained.combine(trainable, frozen), micro, objective)
    return jnp.sum(micro["weights"] * losses), log_p

  def update(trainable, optimizer_state, frozen, batch: PairBatch, learning_rate):
    arrays, num_tokens = _arrays(batch, objective)
    rows = batch.tokens.shape[0]
    size = optimizer.micro_batch_rollouts or rows

    def split(leaf: Array) -> Array:
      # Strided, so that rows that are sharded stay sharded inside a micro-batch.
      return jnp.swapaxes(leaf.reshape(size, rows // size, *leaf.shape[1:]), 0, 1)

    loss, gradient, log_p = summed_gradient(
      lambda params, micro: loss_of(params, frozen, micro),
      trainable,
      jax.tree.map(split, arrays),
    )
    log_p = jnp.swapaxes(log_p, 0, 1).reshape(rows)
    new_trainable, new_state, metrics = apply_gradient(
      trainable,
      optimizer_state,
      gradient,
      loss,
      optimizer=optimizer,
      learning_rate=learning_rate,
      shardings=trained.shardings,
    )
    metrics = {"loss": loss, **metrics, **pair_metrics(log_p, num_tokens, objective)}
    return SupervisedUpdate(
      new_trainable, new_state, {k: jnp.asarray(v, jnp.float32) for k, v in metrics.items()}
    )

  return jax.jit(update, donate_argnums=(0, 1))


def make_supervised_evaluate(
  trained: TrainedPolicy, objective: SupervisedObjectiveConfig
) -> Callable[[Tree, Tree, PairBatch], tuple[Float[Array, "B"], Float[Array, "B"]]]:
  """Jitted `(trainable, frozen, batch) -> (loss of each pair before its weight, log p)`."""

  def evaluate(trainable: Tree, frozen: Tree, batch: PairBatch):
    arrays, _ = _arrays(batch, objective)
    return _losses(trained.policy, trained.combine(trainable, frozen), arrays, objective)

  return jax.jit(evaluate)


def pair_metrics(
  log_p: Float[Array, "B"],
  num_tokens: Int[Array, "B"],
  objective: SupervisedObjectiveConfig,
) -> dict[str, Array]:
  """How likely the completions are, and how much the strategy still has them learn.

  Args:
    log_p: `[B]` log-probability of each completion.
    num_tokens: `[B]` tokens of each; 0 for rows that fill up.
    objective: whose strategy gives the weights p S'(p) / S(p).

  Returns:
    nll_per_token, probability/mean, log_probability/{p10,p50,p90}, weight/{p10,p50,p90} and
    weight/saturated_frac, the share of pairs whose weight is below 0.01.
  """
  counted = num_tokens > 0
  pairs = jnp.maximum(counted.sum(), 1)
  weight = objective.strategy.supervised_weight(log_p)

  def quantiles(name: str, values: Array) -> dict[str, Array]:
    found = jnp.nanquantile(jnp.where(counted, values, jnp.nan), jnp.array([0.1, 0.5, 0.9]))
    return {f"{name}/p{p}": q for p, q in zip((10, 50, 90), found)}

  return {
    "nll_per_token": -jnp.where(counted, log_p, 0).sum() / jnp.maximum(num_tokens.sum(), 1),
    "probability/mean": jnp.where(counted, jnp.exp(log_p), 0).sum() / pairs,
    **quantiles("log_probability", log_p),
    **quantiles("weight", weight),
    "weight/saturated_frac": (counted & (weight < _SATURATED)).sum() / pairs,
  }


def _arrays(
  batch: PairBatch, objective: SupervisedObjectiveConfig
) -> tuple[dict[str, Array], Int[Array, "B"]]:
  num_tokens = jnp.maximum(batch.lengths - batch.prompt_lengths, 0)
  weights = pair_weights(num_tokens, aggregation=objective.resolved_aggregation)
  return {**batch._asdict(), "weights": weights}, num_tokens


def _losses(
  policy: Policy, params: Tree, arrays: dict[str, Array], objective: SupervisedObjectiveConfig
) -> tuple[Float[Array, "B"], Float[Array, "B"]]:
  """(loss of each pair, log-probability of its completion); both 0 for rows that fill up."""
  tokens, prompts, lengths = (arrays[k] for k in ("tokens", "prompt_lengths", "lengths"))
  if objective.needs_rivals:
    found = gold_tokens(
      policy,
      params,
      tokens,
      prompts,
      lengths,
      keys=arrays["keys"],
      num_rivals=objective.draws_rivals,
    )
    scores = TokenScores(found.logprobs, found.margin, found.pairwise)
  else:
    scores = TokenScores(token_logprobs(policy, params, tokens, prompts, lengths).logprobs)
  places = jnp.arange(tokens.shape[1])
  mask = (places >= prompts[:, None]) & (places < lengths[:, None])
  losses = pair_losses(scores, mask, objective)
  return jnp.where(lengths > prompts, losses, 0.0), scores.logprobs.sum(-1)
