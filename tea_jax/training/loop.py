"""The story of a run: prompts, rollouts, rewards, advantages, update, metrics; again.

Every random number of step s comes from the root key, what it is for and s. A checkpoint lies
between two steps and holds all that the next one needs, so a run that is killed at any instant and
started again ends with the same bits.

Axes: P prompts, m rollouts of each, T completion tokens.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from tea_jax.advantages import GroupRule, advantage_diagnostics
from tea_jax.data import EncodedPrompts, PromptIterator
from tea_jax.models.policy import Policy
from tea_jax.rewards import RewardContext, RewardError, RewardFunction, WeightedReward, call_reward
from tea_jax.rollout.types import Rollouts
from tea_jax.training import inputs
from tea_jax.training.checkpoints import CheckpointStore
from tea_jax.training.config import RunConfig
from tea_jax.training.kl import kl_in_reward
from tea_jax.training.learner import Learner, make_learner, place, trim
from tea_jax.training.metrics import (
  RunLog,
  completion_metrics,
  memory_metrics,
  read_jsonl,
  reward_metrics,
)
from tea_jax.training.optimizer import learning_rates
from tea_jax.training.run_folder import RunFolder
from tea_jax.training.selection import Best, better, sample_rewards, selection_score
from tea_jax.training.step import Batch

# What a key is for. Rollouts and advantages also fold in the step.
_DATA, _ADAPTERS, _ROLLOUT, _ADVANTAGE, _VALIDATION = range(5)


class State(NamedTuple):
  """All that changes from step to step, and that a checkpoint holds.

  Attributes:
    trainable, optimizer, tracked: arrays: parameters, optimiser state, the rule's statistics.
    iterator: of the prompts, JSON.
    best: of the validations so far.
    skipped: consecutive updates that were not finite.
  """

  trainable: Any
  optimizer: Any
  tracked: Any
  iterator: Mapping[str, int]
  best: Best | None = None
  skipped: int = 0


@dataclasses.dataclass(frozen=True)
class TrainResult:
  """What a run leaves.

  Attributes:
    run_folder: with metrics, checkpoints and samples.
    policy_folder: the selected policy, a Hugging Face folder.
    policy: the policy after the last step, in memory.
    best: the selected validation, None without selection.
    metrics: every line of `metrics.jsonl`.
  """

  run_folder: pathlib.Path
  policy_folder: pathlib.Path
  policy: Policy
  best: Best | None
  metrics: list[dict[str, Any]]


def train(
  config: RunConfig,
  *,
  policy: Policy | None = None,
  splits: inputs.Splits | None = None,
  reward: RewardFunction | None = None,
  rule: GroupRule | None = None,
  console: Console | None = None,
  on_step: Callable[[int, Mapping[str, Any]], None] | None = None,
) -> TrainResult:
  """Trains a policy, going on from the last checkpoint of the run folder if there is one.

  Args:
    config: of the run.
    policy: instead of `config.model`; its weights are the start and the reference, and stay as
      they are.
    splits: instead of `config.data`: prompts by split, of which `train` and `validation` are read.
    reward: instead of `config.reward`.
    rule: instead of `config.advantage`.
    console: where to print.
    on_step: called after each step with its index and everything that was logged.

  Raises:
    ValueError: for inputs that do not fit each other.
    CheckpointError: if the run folder cannot be written or read.
    RewardError: if a reward failed; the step's completions and a checkpoint are kept.
    FloatingPointError: after too many consecutive updates that were not finite.
  """
  run = Run(config, policy=policy, splits=splits, reward=reward, rule=rule, console=console)
  try:
    return run.train(on_step or (lambda step, record: None))
  finally:
    run.close()


class Run:
  """The parts of one run. `train` is the way in; this class is for those who want the steps."""

  def __init__(
    self,
    config: RunConfig,
    *,
    policy: Policy | None = None,
    splits: inputs.Splits | None = None,
    reward: RewardFunction | None = None,
    rule: GroupRule | None = None,
    console: Console | None = None,
  ):
    self.config = config
    self.folder = RunFolder(config)
    self.policy = policy or inputs.load_run_policy(config)
    self.mesh = inputs.run_mesh(config)
    splits = splits or inputs.load_splits(config.data)
    self.prompts = inputs.encode(splits["train"], self.policy, config.data)
    self.validation = self._validation_prompts(splits)
    self.reward = reward or inputs.make_run_reward(config)
    self.rule = rule or config.advantage_rule()
    longest = max(len(t) for data in (self.prompts, self.validation) for t in data.tokens)
    self.learner: Learner = make_learner(self.policy, config, prompt_length=longest)
    self.learning_rates = learning_rates(config.optimizer, config.steps)
    self.root = jax.random.key(config.seed)
    self.iterator = PromptIterator(
      len(self.prompts), batch_size=config.data.prompts_per_step, key=self._key(_DATA)
    )
    self.advantages = jax.jit(self._advantages)
    trainable, self.frozen = self.learner.start(self.policy.params, self._key(_ADAPTERS))
    state = State(
      trainable,
      self.learner.init_optimizer(trainable),
      self.rule.init(),
      self.iterator.state_dict(),
    )
    console = console or Console()
    say = lambda text: console.print(text, highlight=False, markup=False, soft_wrap=True)  # noqa: E731
    self.store = CheckpointStore(
      self.folder.path / "checkpoints",
      keep=config.checkpoint.keep,
      asynchronous=config.checkpoint.asynchronous,
      announce=say,
    )
    self.first_step, self.state, offsets = self._resume(state)
    self.log = RunLog(
      self.folder.path,
      config.logging,
      steps=config.steps,
      offsets=offsets,
      first_step=self.first_step,
      console=console,
    )
    begins = f"going on from step {self.first_step}" if self.first_step else "starting"
    self.log.say(f"{begins}: {self.rule!r}, {len(self.prompts)} prompts, {self.folder.path}")

  def train(self, on_step: Callable[[int, Mapping[str, Any]], None]) -> TrainResult:
    """Runs the remaining steps and writes the finished policy."""
    every = self.config.checkpoint.every
    for step in range(self.first_step, self.config.steps):
      boundary = self.log.offsets()
      before = self.state
      try:
        metrics, timings = self.step(step)
      except (RewardError, KeyboardInterrupt):
        self._save(step, before, boundary)
        self.log.say(f"Stopped in step {step + 1}; run the same command to go on from there.")
        raise
      started = time.perf_counter()
      metrics |= self._validate(step + 1)
      timings["time/eval"] = time.perf_counter() - started
      self.log.step(step, metrics, timings)
      on_step(step, {**metrics, **timings})
      done = step + 1
      if done == self.config.steps or (every and done % every == 0):
        self._save(done, self.state, self.log.offsets())
    self.store.wait()
    params = self.learner.merge(self.state.trainable, self.frozen)
    best = self.state.best
    selected = best if self.config.checkpoint.final_policy == "best" else None
    self.folder.finish(self.policy, params, None if selected is None else selected.step)
    return TrainResult(
      run_folder=self.folder.path,
      policy_folder=self.folder.policy,
      policy=dataclasses.replace(self.policy, params=params),
      best=best,
      metrics=read_jsonl(self.folder.path / "metrics.jsonl"),
    )

  def step(self, step: int) -> tuple[dict[str, Any], dict[str, float]]:
    """One step; returns what the seed decides and what the clock says."""
    config, clock = self.config, _Clock()
    with clock("rollout"):
      chosen = next(self.iterator)
      params = self.learner.merge(self.state.trainable, self.frozen)
      rollouts = self._sample(params, self.prompts, chosen, self._key(_ROLLOUT, step))
      del params
    with clock("reward"):
      rewards, components, extra = self._score(self.prompts, chosen, rollouts, step=step)
    metrics = {**reward_metrics(rewards, ~np.isnan(rewards)), **components, **extra}
    metrics |= completion_metrics(rollouts.completion_lengths, rollouts.finished)
    batch_rollouts = place(rollouts, self.mesh)
    reference = None
    with clock("reference"):
      if config.objective.needs_reference:
        reference = self.learner.reference_logprobs(self.policy.params, {}, batch_rollouts)
        reference.block_until_ready()
    with clock("advantage"):
      shaped, where = self._shape_rewards(rewards, rollouts, reference)
      advantages, tracked, diagnostics = jax.block_until_ready(
        self.advantages(
          self.state.tracked,
          shaped,
          where,
          rollouts.logprobs.sum(-1),
          np.int32(step),
          self._key(_ADVANTAGE, step),
        )
      )
    with clock("update"):
      counted = np.ones(rewards.shape, bool) if where is None else where
      batch = Batch(batch_rollouts, *place((advantages, counted), self.mesh), None, reference)
      metrics |= self._update(step, batch, tracked)
    with clock("log"):
      metrics |= {name: float(value) for name, value in jax.device_get(diagnostics).items()}
      metrics["epoch"] = self.iterator.state.epoch
      self._log_samples(step, chosen, rollouts, rewards, np.asarray(advantages))
    num_tokens = metrics["num_tokens"]
    return metrics, {**clock.timings(num_tokens), **memory_metrics()}

  def close(self) -> None:
    self.log.close()
    self.folder.close()

  def _key(self, purpose: int, step: int | None = None) -> jax.Array:
    key = jax.random.fold_in(self.root, purpose)
    return key if step is None else jax.random.fold_in(key, step)

  def _sample(
    self, params: Any, data: EncodedPrompts, chosen: np.ndarray, key: jax.Array
  ) -> Rollouts:
    rollouts = self.learner.engine.generate(
      params,
      [data.tokens[i] for i in chosen],
      key=key,
      num_rollouts=self.config.sampling.num_rollouts,
      prompt_ids=[data.prompts[i].id for i in chosen],
    )
    return trim(rollouts, self.config.sampling.max_completion_length)

  def _score(
    self, data: EncodedPrompts, chosen: np.ndarray, rollouts: Rollouts, *, step: int | None
  ) -> tuple[np.ndarray, dict[str, float], dict[str, float]]:
    """`[P, m]` rewards (NaN: not scored), their parts' means, and what rewards want logged."""
    texts = completion_texts(self.policy.tokenizer, rollouts)
    shape = rollouts.completion_lengths.shape
    prompts = [data.prompts[i] for i in chosen for _ in range(shape[1])]
    names = set.intersection(*(set(p.columns) for p in prompts))
    columns = {name: [p.columns[name] for p in prompts] for name in sorted(names)}
    context = RewardContext(step=step, num_steps=self.config.steps)
    arguments = {"context": context, "num_rollouts": shape[1], **columns}
    rows = [p.text for p in prompts]
    try:
      if isinstance(self.reward, WeightedReward):
        parts = self.reward.components(rows, texts, **arguments)
        total = self.reward.combine(parts)
        means = {f"reward/{n}": float(np.nanmean(v)) for n, v in parts.items() if len(parts) > 1}
      else:
        total, means = call_reward(self.reward, rows, texts, **arguments), {}
    except RewardError as error:
      self._keep_unscored(step, rows, texts, error)
      raise
    return np.asarray(total).reshape(shape), means, dict(context.metrics)

  def _keep_unscored(self, step: int | None, rows, texts, error: RewardError) -> None:
    path = self.folder.path / "rollouts" / f"unscored_step_{step}.jsonl"
    path.parent.mkdir(exist_ok=True)
    lines = (json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in zip(rows, texts))
    path.write_text("".join(lines))
    self.log.say(f"{error}. The completions of the step are in {path}.")

  def _shape_rewards(
    self, rewards: np.ndarray, rollouts: Rollouts, reference: jax.Array | None
  ) -> tuple[np.ndarray, np.ndarray | None]:
    """Rewards as the rule sees them, and which rollouts count (None: all)."""
    objective, scored = self.config.objective, ~np.isnan(rewards)
    shaped = np.where(scored, rewards, 0.0)
    cut = ~np.asarray(rollouts.finished)
    if objective.truncated_rollouts == "penalise":
      shaped = shaped - objective.truncation_penalty * cut
    if objective.kl_placement == "reward" and objective.kl_coefficient > 0:
      assert reference is not None
      shaped = kl_in_reward(
        shaped,
        rollouts.logprobs,
        reference,
        rollouts.completion_lengths,
        kl_coefficient=objective.kl_coefficient,
      )
    if objective.truncated_rollouts == "mask":
      return np.asarray(shaped, np.float32), scored & ~cut
    return np.asarray(shaped, np.float32), None if scored.all() else scored

  def _advantages(self, tracked, rewards, where, logprobs, step, key):
    """Advantages, next statistics and diagnostics, in one compiled call."""
    given = {"key": key, "logprobs": logprobs}
    advantages, tracked = self.rule.update(tracked, rewards, step=step, where=where, **given)
    parameters = self.rule.parameters
    tail_fraction = parameters.get("tail_fraction", 0.25)
    diagnostics = advantage_diagnostics(
      rewards,
      advantages,
      tail_fraction=tail_fraction,
      budget=parameters.get("budget", 128),
      where=where,
      minimum_rollouts=self.rule.smallest_group(rewards.shape[-1]),
    )
    return advantages, tracked, diagnostics

  def _update(self, step: int, batch: Batch, tracked: Any) -> dict[str, float]:
    """All updates on one batch; the metrics are the first's, and the last's with `_last`."""
    config, rate = self.config.optimizer, self.learning_rates[step]
    beta = np.float32(self.config.objective.kl_coefficient)
    state, collected = self.state, []
    trainable, optimizer, skipped = state.trainable, state.optimizer, state.skipped
    for _ in range(config.updates_per_batch):
      # The next line donates these buffers: nobody may look at them again.
      self.state = state._replace(trainable=None, optimizer=None)
      result = self.learner.update(trainable, optimizer, self.frozen, batch, rate, beta)
      trainable, optimizer = result.trainable, result.optimizer_state
      collected.append({n: float(v) for n, v in jax.device_get(result.metrics).items()})
      skipped = skipped + 1 if collected[-1]["skipped"] else 0
      if batch.old_logprobs is None:
        batch = batch._replace(old_logprobs=result.logprobs)
    self.state = state._replace(
      trainable=trainable,
      optimizer=optimizer,
      tracked=tracked,
      iterator=self.iterator.state_dict(),
      skipped=skipped,
    )
    if collected[-1]["skipped"]:
      self.log.say(
        f"step {step + 1}: the gradient is not finite (norm {collected[-1]['grad_norm']}); the "
        f"update was skipped, {skipped} in a row."
      )
    if skipped >= config.max_skipped:
      raise FloatingPointError(
        f"{skipped} updates in a row were skipped because their gradients were not finite; lower "
        f"optimizer.learning_rate={config.learning_rate} or optimizer.max_gradient_norm, and go on "
        "from the last checkpoint."
      )
    last = {n: v for n, v in collected[-1].items() if n not in collected[0]}
    if len(collected) > 1:
      last |= {f"{n}_last": collected[-1][n] for n in ("policy_loss", "grad_norm")}
    return {**collected[0], **last, "learning_rate": float(rate)}

  def _validation_prompts(self, splits: inputs.Splits) -> EncodedPrompts:
    options = self.config.selection
    if not options.every:
      return EncodedPrompts([], [], [])
    chosen = list(splits.get("validation", ()))[: options.num_prompts]
    if not chosen:
      raise ValueError("selection.every > 0 needs validation prompts; set data.num_validation.")
    return inputs.encode(chosen, self.policy, self.config.data)

  def _validate(self, done: int) -> dict[str, float]:
    """The selection metric after `done` steps, where one is due; keeps the best weights."""
    options = self.config.selection
    if not options.every or (done % options.every and done != self.config.steps):
      return {}
    params = self.learner.merge(self.state.trainable, self.frozen)
    rewards = sample_rewards(
      self.learner.engine,
      params,
      self.validation.tokens,
      [p.id for p in self.validation.prompts],
      lambda rollouts, chosen: self._score(self.validation, chosen, rollouts, step=None)[0],
      key=self._key(_VALIDATION),
      num_samples=options.num_samples,
      prompts_per_call=self.config.data.prompts_per_step,
      num_rollouts=self.config.sampling.num_rollouts,
    )
    score = selection_score(rewards, options.top)
    best = better(self.state.best, done, score)
    if best.step == done and self.config.checkpoint.final_policy == "best":
      self.folder.save_best(self.policy, params, done)
    self.state = self.state._replace(best=best)
    return {
      "validation/top_mean": score,
      "validation/mean": float(np.nanmean(rewards)),
      "validation/best_step": best.step,
    }

  def _log_samples(self, step: int, chosen, rollouts: Rollouts, rewards, advantages) -> None:
    options = self.config.logging
    if not options.samples_every or step % options.samples_every:
      return
    texts = np.array(completion_texts(self.policy.tokenizer, rollouts), object)
    for row, index in enumerate(chosen):
      order = np.argsort(-np.nan_to_num(rewards[row], nan=-np.inf), kind="stable")
      order = np.r_[order[:1], order[-1:], np.sort(order[1:-1])][: options.samples_per_prompt]
      completions = texts.reshape(rewards.shape)[row]
      self.log.samples(
        {
          "step": step,
          "prompt": self.prompts.prompts[index].text,
          "completions": [completions[i] for i in order],
          "rewards": [rewards[row, i] for i in order],
          "advantages": [advantages[row, i] for i in order],
        }
      )

  def _save(self, step: int, state: State, offsets: Mapping[str, int]) -> None:
    if any(leaf.is_deleted() for leaf in jax.tree.leaves(state.trainable)):
      return  # Interrupted inside an update: its buffers are gone, the last checkpoint stands.
    arrays = {"trainable": state.trainable, "optimizer": state.optimizer, "tracked": state.tracked}
    meta = {
      "key": np.asarray(jax.random.key_data(self.root)).tolist(),
      "iterator": dict(state.iterator),
      "best": None if state.best is None else dataclasses.asdict(state.best),
      "skipped": state.skipped,
      "logs": dict(offsets),
    }
    self.store.save(step, arrays, meta)

  def _resume(self, state: State) -> tuple[int, State, Mapping[str, int] | None]:
    """`(next step, state, log offsets)` of the last checkpoint, or of a new run."""
    arrays = {"trainable": state.trainable, "optimizer": state.optimizer, "tracked": state.tracked}
    abstract = jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), arrays
    )
    restored = self.store.restore_latest(abstract)
    if restored is None:
      return 0, state, None
    meta = restored.meta
    self.root = jax.random.wrap_key_data(jnp.asarray(meta["key"], jnp.uint32))
    self.iterator.load_state_dict(meta["iterator"])
    best = None if meta["best"] is None else Best(**meta["best"])
    state = State(
      **restored.state, iterator=meta["iterator"], best=best, skipped=int(meta["skipped"])
    )
    return restored.step, state, meta["logs"]


def completion_texts(tokenizer: Any, rollouts: Rollouts) -> list[str]:
  """Text of every completion, prompt by prompt; special tokens left out."""
  tokens = np.asarray(rollouts.completion_tokens)
  lengths = np.asarray(rollouts.completion_lengths)
  rows = [row[:n].tolist() for group, ns in zip(tokens, lengths) for row, n in zip(group, ns)]
  return tokenizer.batch_decode(rows, skip_special_tokens=True)


class _Clock:
  """Seconds of each part of a step."""

  def __init__(self):
    self._parts: dict[str, float] = {}
    self._started = time.perf_counter()

  @contextmanager
  def __call__(self, part: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    self._parts[part] = time.perf_counter() - started

  def timings(self, num_tokens: int) -> dict[str, float]:
    step = time.perf_counter() - self._started
    model = sum(self._parts[part] for part in ("rollout", "reference", "update"))
    return {
      **{f"time/{part}": seconds for part, seconds in self._parts.items()},
      "time/step": step,
      "tokens_per_second/rollout": num_tokens / self._parts["rollout"],
      "tokens_per_second/update": num_tokens / self._parts["update"],
      "overhead_frac": (step - model - self._parts["reward"]) / step,
    }
