"""What a run trains and the compiled functions that it needs, shared by runs of the same shapes.

A learner knows which parameters move (all, or adapters on frozen weights) and how they combine
into the policy's. Its compiled functions depend on the model, the sampling and the objective, but
not on the advantage rule, the learning rate or the KL coefficient: comparing rules compiles once.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from tea_jax.models import sharding
from tea_jax.models.causal_lm import abstract_params
from tea_jax.models.logprobs import group_logprobs
from tea_jax.models.lora import LoraConfig, attach_adapters, init_adapters, merge_adapters
from tea_jax.models.policy import Policy
from tea_jax.rollout.cache import DEFAULT_MEMORY, bucket
from tea_jax.rollout.engine import RolloutEngine
from tea_jax.rollout.sampling import SamplingConfig
from tea_jax.rollout.types import Rollouts
from tea_jax.runs.objective import ObjectiveConfig
from tea_jax.runs.optimizer import OptimizerConfig
from tea_jax.runtime import processes
from tea_jax.training.optimizer import init_optimizer, optimizer_shardings
from tea_jax.training.update import make_evaluate_logprobs, make_update

Tree = Any


@dataclasses.dataclass(frozen=True)
class TrainedPolicy:
  """Which parameters of a policy move, and how they combine into all of them.

  Attributes:
    policy: shapes and options of the model; carries no weights.
    lora: adapters that are trained; None if all weights are.
    combine: `(trainable, frozen) -> parameters` of the loss: adapters stay beside their kernels.
    shardings: of the trained parameters and of the optimiser's state; None on one device.
    init_optimizer: `trainable -> optimizer state`.
  """

  policy: Policy
  lora: LoraConfig | None
  combine: Callable[[Tree, Tree], Tree]
  shardings: tuple[Tree, Tree] | None
  init_optimizer: Callable[[Tree], optax.OptState]

  @functools.cached_property
  def merge(self) -> Callable[[Tree, Tree], Tree]:
    """`(trainable, frozen) -> full parameters`, adapters merged into their kernels.

    A bfloat16 base would round small adapters away, so the merged kernels have the precision that
    the policy computes in.
    """
    lora, compute = self.lora, self.policy.dtype
    if lora is None:
      return self.combine

    def merge(trainable: Tree, frozen: Tree) -> Tree:
      dtype = jnp.promote_types(frozen["embed"]["embedding"].dtype, compute)
      return merge_adapters(frozen, trainable, lora, dtype=dtype)

    return jax.jit(merge)

  def start(self, params: Tree, key: jax.Array, *, borrowed: bool = True) -> tuple[Tree, Tree]:
    """`(trainable, frozen)` at the beginning of a run.

    Args:
      params: of the policy.
      key: of new adapters.
      borrowed: somebody else needs `params` later: train a copy, for the update donates its own.
    """
    if self.lora is None:
      trainable, frozen = (jax.tree.map(jnp.copy, params) if borrowed else params), {}
    else:
      trainable, frozen = init_adapters(self.policy.config, self.lora, key), params
    if self.shardings is not None:
      trainable = processes.put(trainable, self.shardings[0])
    return trainable, frozen


@dataclasses.dataclass(frozen=True)
class Learner(TrainedPolicy):
  """The compiled functions of a run.

  Attributes:
    engine: samples rollouts, given the full parameters.
    update: see `make_update`.
    reference_logprobs: `({}, reference params, rollouts) -> [P, m, T]`.
  """

  engine: RolloutEngine
  update: Callable[..., Any]
  reference_logprobs: Callable[..., jax.Array]


def without_schedule(optimizer: OptimizerConfig) -> OptimizerConfig:
  """Learning rate and schedule at their defaults: arguments of the update, not parts of it."""
  defaults = OptimizerConfig()
  dynamic = ("learning_rate", "schedule", "warmup_steps", "final_learning_rate_ratio")
  return dataclasses.replace(optimizer, **{name: getattr(defaults, name) for name in dynamic})


def trained_policy(
  policy: Policy,
  lora: LoraConfig | None,
  optimizer: OptimizerConfig,
  mesh: jax.sharding.Mesh | None,
) -> TrainedPolicy:
  """What is trained of a policy: all of it, or adapters.

  Args:
    policy: the model; its weights are not kept.
    lora: adapters, or None for all weights.
    optimizer: which state there is.
    mesh: of the devices; None on one.
  """
  policy = dataclasses.replace(policy, params={})
  shardings = None if mesh is None else _shardings(policy, lora, optimizer, mesh)

  def combine(trainable: Tree, frozen: Tree) -> Tree:
    return trainable if lora is None else attach_adapters(frozen, trainable, lora)

  def start_optimizer(trainable: Tree) -> optax.OptState:
    return init_optimizer(optimizer, trainable, None if shardings is None else shardings[1])

  return TrainedPolicy(policy, lora, combine, shardings, start_optimizer)


_LEARNERS: dict[Any, Learner] = {}
_KEPT = 4


def make_learner(
  policy: Policy,
  *,
  sampler: SamplingConfig,
  objective: ObjectiveConfig,
  optimizer: OptimizerConfig,
  lora: LoraConfig | None = None,
  prompt_length: int,
  memory: int = DEFAULT_MEMORY,
  mesh: jax.sharding.Mesh | None = None,
) -> Learner:
  """The learner of a run, reused if one of the same shapes was made in this process.

  Args:
    policy: the model; its weights are not kept.
    sampler: how tokens are drawn.
    objective, optimizer: of the update; learning rate, schedule and KL coefficient do not matter.
    lora: adapters that are trained; None if all weights are.
    prompt_length: longest prompt in tokens; all prompts are padded to its bucket, so that no batch
      compiles anything new.
    memory: bytes of each copy of the model for rows that are decoded together.
    mesh: of the devices; None on one.
  """
  fields = {f.name: getattr(policy, f.name) for f in dataclasses.fields(policy)}
  tokenizer = fields.pop("tokenizer")
  del fields["params"], fields["generation"]
  objective = dataclasses.replace(
    objective, kl_coefficient=float(objective.kl_coefficient > 0), kl_target=None
  )
  optimizer = without_schedule(optimizer)
  prompt_length = bucket(prompt_length, smallest=16)
  own = (id(tokenizer), sampler, lora, objective, optimizer, prompt_length, memory, mesh)
  key = (*fields.items(), *own)
  if key not in _LEARNERS:
    while len(_LEARNERS) >= _KEPT:
      _LEARNERS.pop(next(iter(_LEARNERS)))
    _LEARNERS[key] = _build(policy, *own[1:])
  return _LEARNERS[key]


def _build(policy, sampling, lora, objective, optimizer, prompt_length, memory, mesh) -> Learner:
  trained = trained_policy(policy, lora, optimizer, mesh)
  policy = trained.policy
  split, shards = dataclasses.replace(policy, mesh=mesh), sharding.row_shards(mesh)

  def compute(params: Tree, rollouts: Rollouts, with_entropy: bool):
    out = group_logprobs(
      split, params, rollouts, temperature=sampling.temperature, with_entropy=with_entropy
    )
    return out.logprobs, out.entropy

  def policy_logprobs(trainable: Tree, frozen: Tree, rollouts: Rollouts):
    params = trained.combine(trainable, frozen)
    return compute(params, rollouts, objective.entropy_coefficient > 0)

  def reference_logprobs(trainable: Tree, frozen: Tree, rollouts: Rollouts):
    del trainable  # The reference has no adapters.
    return compute(frozen, rollouts, False)

  return Learner(
    **{f.name: getattr(trained, f.name) for f in dataclasses.fields(trained)},
    engine=RolloutEngine(policy, sampling, memory=memory, smallest_prompt=prompt_length, mesh=mesh),
    update=make_update(
      policy_logprobs,
      objective,
      optimizer,
      max_completion_length=sampling.max_completion_length,
      shardings=trained.shardings,
      shards=shards,
    ),
    reference_logprobs=make_evaluate_logprobs(
      reference_logprobs,
      micro_batch_rollouts=optimizer.micro_batch_rollouts,
      length_buckets=optimizer.length_buckets,
      shards=shards,
    ),
  )


def _shardings(policy, lora, optimizer, mesh) -> tuple[Tree, Tree]:
  """Of the trained parameters and of the optimiser's state; adapters are on every device."""
  if lora is None:
    shapes = abstract_params(policy.config)
    places = sharding.param_shardings(shapes, policy.config, mesh)
  else:
    shapes = jax.eval_shape(lambda: init_adapters(policy.config, lora, jax.random.key(0)))
    everywhere = NamedSharding(mesh, PartitionSpec())
    places = jax.tree.map(lambda _: everywhere, shapes)
  return places, optimizer_shardings(optimizer, shapes, places)


def trim(rollouts: Rollouts, max_completion_length: int) -> Rollouts:
  """Cuts the completion axis to what the sampler may fill; its bucket can be longer."""
  cut = slice(0, max_completion_length)
  return rollouts._replace(
    completion_tokens=rollouts.completion_tokens[..., cut],
    logprobs=rollouts.logprobs[..., cut],
    sampling_logprobs=rollouts.sampling_logprobs[..., cut],
  )


def place(tree: Tree, mesh: jax.sharding.Mesh | None) -> Tree:
  """Puts a batch on the devices: prompts over the mesh's rows, or else the rollouts of each.

  An axis that does not divide lies on every device.
  """
  if mesh is None:
    return tree
  shards = sharding.row_shards(mesh)
  rows = sharding.batch_sharding(mesh).spec[0]

  def put(path: tuple[Any, ...], leaf: Any) -> jax.Array:
    per_prompt = "prompt" in str(path[-1]) if path else False
    spec = PartitionSpec()
    if leaf.shape[0] % shards == 0:
      spec = PartitionSpec(rows)
    elif not per_prompt and leaf.ndim > 1 and leaf.shape[1] % shards == 0:
      spec = PartitionSpec(None, rows)
    return processes.put(leaf, NamedSharding(mesh, spec))

  return jax.tree_util.tree_map_with_path(put, tree)
