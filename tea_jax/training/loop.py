"""The story of a run: prompts, rollouts, rewards, advantages, update, metrics; again.

Every random number of step s comes from the root key, what it is for and s. A checkpoint lies
between two steps and holds all that the next one needs, so a run that is killed at any instant and
started again ends with the same bits.

Axes: P prompts, m rollouts of each, T completion tokens.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import time
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from tea_jax.advantages import GroupRule
from tea_jax.data import PromptIterator, columns_digest
from tea_jax.evaluation.best_of_n import top_mean
from tea_jax.evaluation.scoring import Scorer, Scores, sample_record
from tea_jax.evaluation.scoring_ahead import ScoringAhead
from tea_jax.models.causal_lm import num_parameters
from tea_jax.models.digest import parameters_digest
from tea_jax.models.policy import Policy
from tea_jax.rewards import RewardError, RewardFunction
from tea_jax.rollout.types import Rollouts
from tea_jax.runs.build import Parts, Splits, build
from tea_jax.runs.checkpoints import CheckpointStore
from tea_jax.runs.config import RunConfig, to_dict
from tea_jax.runs.folder import RunFolder
from tea_jax.runs.log import open_log, read_jsonl
from tea_jax.runs.state import Best, State, restore_state, save_state
from tea_jax.runtime import processes
from tea_jax.runtime.code_identity import code_identity
from tea_jax.runtime.completions_client import CompletionsError
from tea_jax.runtime.extras import extra
from tea_jax.runtime.files import plain
from tea_jax.runtime.keys import make_key
from tea_jax.runtime.memory import return_free_memory
from tea_jax.scaling.generators import Engine
from tea_jax.training.advantage_step import AdvantageStep, rewards_for_rule, told_of_ties
from tea_jax.training.batch_updates import update_on_batch
from tea_jax.training.clock import Clock
from tea_jax.training.kl_control import KLControl, controlled_coefficient, observe_kl
from tea_jax.training.learner import make_learner, place, trim
from tea_jax.training.metrics import completion_metrics, memory_metrics, reward_metrics
from tea_jax.training.optimizer import learning_rates
from tea_jax.training.profiling import traced, utilization
from tea_jax.training.update import Batch
from tea_jax.training.validation import Validation, better, validation_best_of_n

with extra("train", "training"):
  from rich.console import Console

# What a key is for. Those of rollouts and advantages also fold in the step.
_DATA, _ADAPTERS, _ROLLOUT, _ADVANTAGE, _VALIDATION = range(5)


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


OnStep = Callable[[int, Mapping[str, Any]], None]


def train(
  config: RunConfig,
  *,
  policy: Policy | None = None,
  splits: Splits | None = None,
  reward: RewardFunction | None = None,
  rule: GroupRule | None = None,
  engine: Engine | None = None,
  console: Console | None = None,
  on_step: OnStep | None = None,
) -> TrainResult:
  """Trains a policy, going on from the last checkpoint of the run folder if there is one.

  Where `processes.connect` joined several processes, all of them call this alike; one writes.

  Args:
    config: of the run.
    policy: instead of `config.model`; its weights are the start and the reference, and stay as
      they are.
    splits: instead of `config.data`: prompts by split, of which `train` and `validation` are read.
    reward: instead of `config.reward`.
    rule: instead of `config.advantage`.
    engine: samples the rollouts instead of our own engine, as `ServerEngine` does.
    console: where to print.
    on_step: called after each step with its index and everything that was logged.

  Raises:
    ValueError: for inputs that do not fit each other.
    CheckpointError: if the run folder cannot be written or read.
    RewardError: if a reward failed; the step's completions and a checkpoint are kept.
    FloatingPointError: after too many consecutive updates that were not finite.
  """
  with processes.stopping_together(), processes.together():
    if engine is not None and processes.several():
      raise ValueError("an engine of your own samples in one process; start one, or leave it out.")
    processes.require_same(to_dict(config), "the config")
    folder = RunFolder(config)
    try:
      # Nothing but the run may hold the parts: what it trains is donated.
      run = Run(
        build(config, policy=policy, splits=splits, reward=reward, rule=rule),
        folder,
        engine=engine,
        console=console,
      )
      try:
        return run.train(on_step)
      finally:
        run.log.close()
    finally:
      folder.close()


class Run:
  """The parts of one run; `train` is the usual way in."""

  def __init__(
    self,
    parts: Parts,
    folder: RunFolder,
    *,
    engine: Engine | None = None,
    console: Console | None = None,
  ):
    self.parts, self.folder = parts, folder
    console = (console or Console()) if processes.is_first() else Console(quiet=True)
    self.mesh, self.prompts, self.rule = parts.mesh, parts.prompts, parts.rule
    self.validation = Validation(
      parts.validation_prompts,
      parts.validation,
      parts.steps,
      parts.prompts_per_step,
      parts.num_rollouts,
    )
    self.scorer = Scorer(
      parts.reward,
      parts.policy.tokenizer,
      num_steps=parts.steps,
      folder=folder.path / "rollouts",
    )
    self.learner = make_learner(
      parts.policy,
      sampler=parts.sampler,
      objective=parts.objective,
      optimizer=parts.optimizer,
      lora=parts.lora,
      prompt_length=parts.longest_prompt,
      memory=parts.decode_memory,
      mesh=self.mesh,
    )
    self.engine = engine or self.learner.engine
    self.learning_rates = learning_rates(parts.optimizer, parts.steps)
    self.root = make_key(parts.seed)
    self.iterator = PromptIterator(
      len(self.prompts), batch_size=parts.prompts_per_step, key=self._key(_DATA)
    )
    self.told_ties = False
    self.advantages = AdvantageStep(self.rule, answer=parts.answer)
    start = parts.policy.params
    self.num_params = num_parameters(start)
    self.reference = start if parts.objective.needs_reference else None
    self.identity = {
      "reward": code_identity(parts.reward),
      "rule": code_identity(self.rule),
      "set of data columns": columns_digest(
        [*self.prompts.prompts, *self.validation.prompts.prompts]
      ),
    }
    if self.reference is not None or parts.lora is not None:
      self.identity["base model"] = parameters_digest(start)
    trainable, self.frozen = self.learner.start(
      start, self._key(_ADAPTERS), borrowed=parts.borrowed or bool(self.reference)
    )
    # The start of a policy that was loaded for this run is freed unless it is the reference.
    self.policy = dataclasses.replace(parts.policy, params={})
    self.parts = dataclasses.replace(parts, policy=self.policy)
    del parts, start
    fresh = State(
      trainable,
      self.learner.init_optimizer(trainable),
      processes.replicate(self.rule.init(), self.mesh),
      self.iterator.state_dict(),
    )
    del trainable
    self.store = CheckpointStore(
      folder.path / "checkpoints",
      keep=self.parts.checkpoint.keep,
      asynchronous=self.parts.checkpoint.asynchronous,
      announce=lambda text: console.print(text, highlight=False, markup=False, soft_wrap=True),
    )
    encoded = repr((self.prompts.tokens, self.validation.prompts.tokens))
    self.prompts_checksum = zlib.crc32(encoded.encode())
    processes.require_same({"set of prompts": self.prompts_checksum, **self.identity}, "the run")
    self.first_step, self.state, self.root, offsets, self.pending = restore_state(
      self.store,
      fresh,
      self.root,
      prompts=self.prompts_checksum,
      identity=self.identity,
      accept_changes=self.parts.checkpoint.accept_changes,
    )
    if offsets is None:
      folder.check_restart()
    # The best validation that each checkpoint of this process knows of: its weights must stay.
    self.bests = {self.first_step: self.state.best}
    del fresh
    self.iterator.load_state_dict(self.state.iterator)
    self.log = open_log(
      folder.path,
      self.parts.logging,
      steps=self.parts.steps,
      offsets=offsets,
      first_step=self.first_step,
      console=console,
    )
    begins = f"going on from step {self.first_step + 1}" if self.first_step else "starting"
    if self.first_step >= self.parts.steps:
      begins = f"all {self.parts.steps} steps are done"
    self.log.say(f"{begins}: {self.rule!r}, {len(self.prompts)} prompts, {folder.path}")

  def train(self, on_step: OnStep | None = None) -> TrainResult:
    """Runs the remaining steps and writes the finished policy."""
    every = self.parts.checkpoint.every
    if self.validation.has_own_shape:
      params = self.learner.merge(self.state.trainable, self.frozen)
      self.validation.compile(self.engine, params, self._key(_VALIDATION))
      del params
    if self.pending is not None:
      metrics, timings = self.pending
      self._finish_step(self.first_step - 1, metrics, timings, on_step)
    self.log.starting()
    for step in range(self.first_step, self.parts.steps):
      before, offsets = self.state, self.log.offsets()
      profiled = processes.is_first() and step + 1 in self.parts.logging.profile_steps
      try:
        processes.check_stop()
        with traced(self.folder.path / "profile", profiled):
          metrics, timings = self.step(step)
      except (RewardError, CompletionsError, KeyboardInterrupt) as error:
        if before.intact:
          self._save(step, before, offsets, failed=isinstance(error, RewardError))
        self.log.say(f"Stopped in step {step + 1}; run the same command to go on.")
        raise
      done = step + 1
      self._finish_step(step, metrics, timings, on_step)
      if done == self.parts.steps or (every and done % every == 0):
        self._save(done, self.state, self.log.offsets())
    self.store.close()
    params = self.learner.merge(self.state.trainable, self.frozen)
    best = self.state.best
    selected = best if self.parts.checkpoint.final_policy == "best" else None
    if self.parts.lora is not None and selected is None:
      self.folder.save_adapter(self.policy, self.state.trainable, self.parts.lora)
    self.folder.finish(self.policy, params, None if selected is None else selected.step)
    return TrainResult(
      run_folder=self.folder.path,
      policy_folder=self.folder.policy,
      policy=dataclasses.replace(self.policy, params=params),
      best=best,
      metrics=processes.on_first(read_jsonl, self.folder.path / "metrics.jsonl"),
    )

  def _finish_step(
    self,
    step: int,
    metrics: Mapping[str, Any],
    timings: Mapping[str, Any],
    on_step: OnStep | None,
  ) -> None:
    """Validates if it is time, and logs; a stop in between leaves a checkpoint for here."""
    started = time.perf_counter()
    try:
      processes.check_stop()
      metrics = {**metrics, **self._validate(step + 1)}
    except (RewardError, CompletionsError, KeyboardInterrupt) as error:
      pending, failed = plain([metrics, timings]), isinstance(error, RewardError)
      self._save(step + 1, self.state, self.log.offsets(), pending=pending, failed=failed)
      self.log.say(
        f"Stopped in the validation after step {step + 1}; run the same command to go on."
      )
      raise
    timings = {**timings, "time/eval": time.perf_counter() - started}
    with processes.together():
      self.log.step(step, metrics, timings)
      if on_step is not None:
        on_step(step, {**metrics, **timings})

  def step(self, step: int) -> tuple[dict[str, Any], dict[str, float]]:
    """One step; returns what the seed decides and what the clock says."""
    clock = Clock()
    with clock("rollout"):
      chosen = next(self.iterator)
      size = self.parts.num_rollouts
      with ScoringAhead(self.scorer, self.prompts, chosen, size, step=step) as ahead:
        rollouts = self._sample(chosen, self._key(_ROLLOUT, step), ahead)
    with clock("reward"):
      scores = ahead.scores() or self.scorer(self.prompts, chosen, rollouts, step=step)
      processes.check_stop()
    with clock("reference"):
      on_devices = place(rollouts, self.mesh)
      reference = self._reference_logprobs(on_devices)
    with clock("advantage"):
      shaped, where = rewards_for_rule(
        self.parts.objective,
        scores.rewards,
        rollouts,
        reference,
        kl_coefficient=self._kl_coefficient(),
      )
      advantages, tracked, diagnostics = self.advantages(
        processes.local(self.state.tracked),
        shaped,
        where,
        rollouts,
        scores.texts,
        step=step,
        key=self._key(_ADVANTAGE, step),
      )
    with clock("update"):
      on_rows, counted = place((advantages, where), self.mesh)
      batch = Batch(on_devices, on_rows, counted, None, reference)
      update_metrics = self._update(step, batch, processes.replicate(tracked, self.mesh))
    with clock("log"):
      metrics = {
        **reward_metrics(scores.rewards, ~np.isnan(scores.rewards)),
        **scores.metrics,
        **completion_metrics(
          np.asarray(rollouts.completion_lengths), np.asarray(rollouts.finished)
        ),
        **{name: float(value) for name, value in jax.device_get(diagnostics).items()},
        **update_metrics,
        "epoch": self.iterator.state.epoch,
      }
      self._log_samples(step, chosen, scores, np.asarray(advantages))
    self._tell_ties(step, metrics)
    timings = clock.timings(metrics["num_tokens"])
    used = utilization(
      timings,
      num_tokens=metrics["num_tokens"],
      num_params=self.num_params,
      peak_teraflops=self.parts.logging.peak_teraflops,
      num_devices=1 if self.mesh is None else self.mesh.size,
    )
    return metrics, {**timings, **used, **memory_metrics()}

  def _tell_ties(self, step: int, metrics: Mapping[str, float]) -> None:
    """Says once that a rule of the tail is blind to most groups."""
    told = None if self.told_ties else told_of_ties(self.rule, metrics.get("tail/tied_frac", 0.0))
    if told is not None:
      self.told_ties = True
      self.log.say(f"step {step + 1}: {told}")

  def _key(self, purpose: int, step: int | None = None) -> jax.Array:
    key = jax.random.fold_in(self.root, purpose)
    return key if step is None else jax.random.fold_in(key, step)

  def _sample(self, chosen: np.ndarray, key: jax.Array, ahead: ScoringAhead) -> Rollouts:
    generate = self.engine.generate
    if self.engine is self.learner.engine:
      generate = functools.partial(self.learner.engine.generate, on_call=ahead.add)
    rollouts = generate(
      self.learner.merge(self.state.trainable, self.frozen),
      [self.prompts.tokens[i] for i in chosen],
      key=key,
      num_rollouts=self.parts.num_rollouts,
      prompt_ids=[self.prompts.prompts[i].id for i in chosen],
    )
    return trim(rollouts, self.parts.sampler.max_completion_length)

  def _reference_logprobs(self, rollouts: Rollouts) -> jax.Array | None:
    if self.reference is None:
      return None
    return self.learner.reference_logprobs({}, self.reference, rollouts).block_until_ready()

  def _kl_coefficient(self) -> float:
    """Of this step: the objective's, or what holds the KL at its target."""
    objective = self.parts.objective
    if objective.kl_target is None:
      return objective.kl_coefficient
    control = KLControl(*self.state.kl_control)
    return controlled_coefficient(
      control, target=objective.kl_target, start=objective.kl_coefficient
    )

  def _update(self, step: int, batch: Batch, tracked: Any) -> dict[str, float]:
    """All updates on one batch; their metrics."""
    optimizer, rate = self.parts.optimizer, self.learning_rates[step]

    def warn(update: int, sentence: str) -> None:
      which = f", update {update + 1}" if optimizer.updates_per_batch > 1 else ""
      self.log.say(f"step {step + 1}{which}: {sentence}")

    beta, target = self._kl_coefficient(), self.parts.objective.kl_target
    updated = update_on_batch(
      self.learner,
      self.state,
      self.frozen,
      batch,
      kl_coefficient=beta,
      updates=optimizer.updates_per_batch,
      rate=rate,
      warn=warn,
    )
    control = self.state.kl_control
    if target is not None:
      control = observe_kl(KLControl(*control), updated.metrics["kl"], target=target)
    self.state = self.state._replace(
      trainable=updated.trainable,
      optimizer=updated.optimizer,
      tracked=tracked,
      iterator=self.iterator.state_dict(),
      skipped=updated.skipped,
      kl_control=control,
    )
    if updated.skipped >= optimizer.max_skipped:
      raise FloatingPointError(
        f"{updated.skipped} updates in a row were skipped because their gradients were not finite; "
        f"look at the last rewards, or lower optimizer.learning_rate={optimizer.learning_rate}."
      )
    steered = {} if target is None else {"kl_coefficient": beta}
    return {**updated.metrics, **steered, "learning_rate": float(rate)}

  def _validate(self, done: int) -> dict[str, float]:
    """The selection metric after `done` steps, where one is due; keeps the best weights."""
    if not self.validation.due(done):
      return {}
    params = self.learner.merge(self.state.trainable, self.frozen)
    rewards = self.validation.rewards(self.engine, params, self.scorer, key=self._key(_VALIDATION))
    score = top_mean(rewards, self.parts.validation.top)
    best = better(self.state.best, done, score)
    if best.step == done and self.parts.checkpoint.final_policy == "best":
      self.folder.save_best(self.policy, params, done)
      if self.parts.lora is not None:
        self.folder.save_adapter(self.policy, self.state.trainable, self.parts.lora, done)
    self.state = self.state._replace(best=best)
    return {
      "validation/top_mean": score,
      "validation/mean": float(np.nanmean(rewards)),
      **validation_best_of_n(rewards),
      "validation/best_step": best.step,
    }

  def _log_samples(self, step: int, chosen, scores: Scores, advantages: np.ndarray) -> None:
    options = self.parts.logging
    if not options.samples_every or step % options.samples_every:
      return
    for row, index in enumerate(chosen):
      text, count = self.prompts.prompts[index].text, options.samples_per_prompt
      group = (scores.texts[row], scores.rewards[row], advantages[row])
      self.log.samples(sample_record(step, text, *group, count=count))

  def _save(
    self,
    step: int,
    state: State,
    offsets: Mapping[str, int],
    *,
    pending: Any = None,
    failed: bool = False,
  ) -> None:
    """A checkpoint; one that a failing reward left does not ask for the same reward again."""
    mended = ("reward",) if failed else ()
    return_free_memory()
    save_state(
      self.store,
      step,
      state,
      root=self.root,
      log_offsets=offsets,
      prompts=self.prompts_checksum,
      pending=pending,
      identity={what: digest for what, digest in self.identity.items() if what not in mended},
    )
    self.bests[step] = state.best
    kept = list(self.bests.values())[-self.store.num_kept :]
    self.folder.forget_best({best.step for best in kept if best is not None})
    return_free_memory()
