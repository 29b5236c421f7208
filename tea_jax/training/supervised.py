"""The story of a supervised run: pairs, update, metrics; again.

It shares checkpoints, logs, folder and update with the reinforcement-learning loop: every random
number comes from the root key, and a run that is killed at any instant and started again ends with
the same bits.

Axes: B pairs, T tokens of prompt, completion and padding.
"""

from __future__ import annotations

import dataclasses
import pathlib
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from tea_jax.data.supervised import EncodedPairs, Pair
from tea_jax.models.policy import Policy
from tea_jax.runs.build import load_run_policy, run_mesh, spread, with_param_dtype
from tea_jax.runs.checkpoints import CheckpointStore
from tea_jax.runs.config import to_dict
from tea_jax.runs.datasets import encode_run_pairs, load_pair_splits
from tea_jax.runs.folder import RunFolder
from tea_jax.runs.log import open_log, read_jsonl
from tea_jax.runs.state import Best, State, restore_state, save_state
from tea_jax.runs.supervised import SupervisedConfig
from tea_jax.runtime import processes
from tea_jax.runtime.compilation import compile_seconds
from tea_jax.runtime.keys import make_key
from tea_jax.runtime.memory import return_free_memory
from tea_jax.training.learner import place
from tea_jax.training.metrics import memory_metrics
from tea_jax.training.optimizer import learning_rates
from tea_jax.training.pair_batches import PairIterator, make_batch, row_keys
from tea_jax.training.supervised_objective import pair_weights
from tea_jax.training.supervised_update import pair_metrics, supervised_functions
from tea_jax.training.validation import better

# What a key is for.
_DATA, _ADAPTERS, _RIVALS = range(3)

PairSplits = Mapping[str, Sequence[Pair]]
OnStep = Callable[[int, Mapping[str, Any]], None]


@dataclasses.dataclass(frozen=True)
class SupervisedResult:
  """What a supervised run leaves.

  Attributes:
    run_folder: with metrics and checkpoints.
    policy_folder: the selected policy, a Hugging Face folder.
    policy: the policy after the last step, in memory.
    best: the lowest validation loss (its score is minus that); None without validation.
    metrics: every line of `metrics.jsonl`.
  """

  run_folder: pathlib.Path
  policy_folder: pathlib.Path
  policy: Policy
  best: Best | None
  metrics: list[dict[str, Any]]


def train_supervised(
  config: SupervisedConfig,
  *,
  policy: Policy | None = None,
  splits: PairSplits | None = None,
  console: Console | None = None,
  on_step: OnStep | None = None,
) -> SupervisedResult:
  """Trains a policy on pairs, going on from the last checkpoint of the run folder if there is one.

  Where `processes.connect` joined several processes, all of them call this alike; one writes.

  Args:
    config: of the run.
    policy: instead of `config.model`; its weights are the start and stay as they are.
    splits: instead of `config.data`: pairs by split, of which `train` and `validation` are read.
    console: where to print.
    on_step: called after each step with its index and everything that was logged.

  Raises:
    ValueError: for inputs that do not fit each other.
    CheckpointError: if the run folder cannot be written or read.
    FloatingPointError: after too many consecutive updates that were not finite.
  """
  with processes.stopping_together(), processes.together():
    processes.require_same(to_dict(config), "the config")
    folder = RunFolder(config)
    try:
      run = SupervisedRun(config, folder, policy=policy, splits=splits, console=console)
      try:
        return run.train(on_step)
      finally:
        run.log.close()
    finally:
      folder.close()


class SupervisedRun:
  """The parts of one run; `train_supervised` is the usual way in."""

  def __init__(
    self,
    config: SupervisedConfig,
    folder: RunFolder,
    *,
    policy: Policy | None = None,
    splits: PairSplits | None = None,
    console: Console | None = None,
  ):
    self.config, self.folder = config, folder
    console = (console or Console()) if processes.is_first() else Console(quiet=True)
    # Before the model, which takes longer to read.
    splits = splits or load_pair_splits(config.data)
    loaded = policy or load_run_policy(config)
    self.mesh = run_mesh(config)
    own = with_param_dtype(loaded, config.model.param_dtype)
    borrowed = own is policy
    self.policy = spread(own, self.mesh)
    self.pairs = encode_run_pairs(splits["train"], self.policy, config.data)
    self.validation = EncodedPairs([], [], [])
    if config.validation_every and splits.get("validation"):
      self.validation = encode_run_pairs(splits["validation"], self.policy, config.data)
    self.num_steps = config.num_steps(len(self.pairs))
    self.root = make_key(config.seed)
    self.iterator = PairIterator(
      self.pairs.lengths, batch_size=config.data.batch_size, key=self._key(_DATA)
    )
    self.learning_rates = learning_rates(config.optimizer, self.num_steps)
    functions = supervised_functions(
      self.policy, config.model.lora, config.objective, config.optimizer, self.mesh
    )
    trained, self.update, self.evaluate = functions
    self.merge = trained.merge
    trainable, self.frozen = trained.start(
      self.policy.params, self._key(_ADAPTERS), borrowed=borrowed
    )
    self.policy = trained.policy
    fresh = State(trainable, trained.init_optimizer(trainable), {}, self.iterator.state_dict())
    del trainable
    self.store = CheckpointStore(
      folder.path / "checkpoints",
      keep=config.checkpoint.keep,
      asynchronous=config.checkpoint.asynchronous,
      announce=lambda text: console.print(text, highlight=False, markup=False, soft_wrap=True),
    )
    encoded = repr((self.pairs.tokens, self.pairs.prompt_lengths, self.validation.tokens))
    self.pairs_checksum = zlib.crc32(encoded.encode())
    processes.require_same({"set of pairs": self.pairs_checksum}, "the run")
    self.first_step, self.state, self.root, offsets, _ = restore_state(
      self.store, fresh, self.root, prompts=self.pairs_checksum
    )
    if offsets is None:
      folder.check_restart()
    self.bests = {self.first_step: self.state.best}
    del fresh
    self.iterator.load_state_dict(self.state.iterator)
    self.log = open_log(
      folder.path,
      config.logging,
      steps=self.num_steps,
      offsets=offsets,
      first_step=self.first_step,
      console=console,
    )
    begins = f"going on from step {self.first_step + 1}" if self.first_step else "starting"
    dropped = f" ({self.pairs.num_dropped} too long)" if self.pairs.num_dropped else ""
    self.log.say(
      f"{begins}: {config.objective.name}, {len(self.pairs)} pairs{dropped}, "
      f"{self.num_steps} steps, {folder.path}"
    )

  def train(self, on_step: OnStep | None = None) -> SupervisedResult:
    """Runs the remaining steps and writes the finished policy."""
    every = self.config.checkpoint.every
    self.log.starting()
    for step in range(self.first_step, self.num_steps):
      before, offsets = self.state, self.log.offsets()
      try:
        processes.check_stop()
        metrics, timings = self.step(step)
        metrics |= self._validate(step + 1)
      except KeyboardInterrupt:
        if before.intact:
          self._save(step, before, offsets)
        self.log.say(f"Stopped in step {step + 1}; run the same command to go on.")
        raise
      with processes.together():
        self.log.step(step, metrics, timings)
        if on_step is not None:
          on_step(step, {**metrics, **timings})
      done = step + 1
      if done == self.num_steps or (every and done % every == 0):
        self._save(done, self.state, self.log.offsets())
    self.store.close()
    params = self.merge(self.state.trainable, self.frozen)
    best = self.state.best
    selected = best if self.config.checkpoint.final_policy == "best" else None
    self.folder.finish(self.policy, params, None if selected is None else selected.step)
    return SupervisedResult(
      run_folder=self.folder.path,
      policy_folder=self.folder.policy,
      policy=dataclasses.replace(self.policy, params=params),
      best=best,
      metrics=processes.on_first(read_jsonl, self.folder.path / "metrics.jsonl"),
    )

  def step(self, step: int) -> tuple[dict[str, Any], dict[str, float]]:
    """One update; returns what the seed decides and what the clock says."""
    started, compiled = time.perf_counter(), compile_seconds()
    chosen = next(self.iterator)
    keys = None
    if self.config.objective.draws_rivals:
      keys = row_keys(self._key(_RIVALS, step), chosen)
    batch = make_batch(self.pairs, chosen, keys=keys)
    rate = self.learning_rates[step]
    result = self.update(
      self.state.trainable,
      self.state.optimizer,
      self.frozen,
      place(batch, self.mesh),
      rate,
    )
    metrics = {name: float(value) for name, value in jax.device_get(result.metrics).items()}
    skipped = self.state.skipped + 1 if metrics["skipped"] else 0
    self.state = self.state._replace(
      trainable=result.trainable,
      optimizer=result.optimizer_state,
      iterator=self.iterator.state_dict(),
      skipped=skipped,
    )
    if skipped:
      self.log.say(
        f"step {step + 1}: the gradient is not finite (norm {metrics['grad_norm']}); the update "
        f"was skipped, {skipped} in a row."
      )
    if skipped >= self.config.optimizer.max_skipped:
      raise FloatingPointError(
        f"{skipped} updates in a row were skipped because their gradients were not finite; lower "
        f"optimizer.learning_rate={self.config.optimizer.learning_rate}."
      )
    seconds = time.perf_counter() - started
    num_tokens = int((batch.lengths - batch.prompt_lengths).sum())
    metrics |= {
      "learning_rate": float(rate),
      "num_tokens": num_tokens,
      "padded_length": batch.tokens.shape[1],
      "epoch": self.iterator.state.epoch,
    }
    timings = {
      "time/step": seconds,
      "time/compile": compile_seconds() - compiled,
      "tokens_per_second/update": int(batch.lengths.sum()) / seconds,
      **memory_metrics(),
    }
    return metrics, timings

  def _key(self, purpose: int, step: int | None = None) -> jax.Array:
    key = jax.random.fold_in(self.root, purpose)
    return key if step is None else jax.random.fold_in(key, step)

  def _validate(self, done: int) -> dict[str, float]:
    """The held-out losses after `done` steps, where they are due; keeps the best weights."""
    every = self.config.validation_every
    if not len(self.validation) or not (done % every == 0 or done == self.num_steps):
      return {}
    measured = self.held_out_metrics()
    best = better(self.state.best, done, -measured["validation/loss"])
    if best.step == done and self.config.checkpoint.final_policy == "best":
      params = self.merge(self.state.trainable, self.frozen)
      self.folder.save_best(self.policy, params, done)
    self.state = self.state._replace(best=best)
    return {**measured, "validation/best_step": best.step}

  def held_out_metrics(self) -> dict[str, float]:
    """Loss, and `pair_metrics`, of the validation pairs."""
    pairs, size = self.validation, self.config.data.batch_size
    order = np.argsort(pairs.lengths, kind="stable")
    losses, log_p = np.zeros(len(pairs)), np.zeros(len(pairs))
    for start in range(0, len(pairs), size):
      chosen = order[start : start + size]
      keys = None
      if self.config.objective.draws_rivals:
        # The same rivals for every validation.
        keys = row_keys(self._key(_RIVALS), np.resize(chosen, size))
      batch = place(make_batch(pairs, chosen, keys=keys, rows=size), self.mesh)
      found = self.evaluate(self.state.trainable, self.frozen, batch)
      losses[chosen], log_p[chosen] = (processes.fetch(each)[: len(chosen)] for each in found)
    objective = self.config.objective
    num_tokens = jnp.asarray(pairs.lengths - np.asarray(pairs.prompt_lengths))
    weights = pair_weights(num_tokens, aggregation=objective.resolved_aggregation)
    metrics = pair_metrics(jnp.asarray(log_p, jnp.float32), num_tokens, objective)
    loss = np.sum(np.asarray(weights, np.float64) * losses)
    return {
      "validation/loss": float(loss),
      **{f"validation/{name}": float(value) for name, value in metrics.items()},
    }

  def _save(self, step: int, state: State, offsets: Mapping[str, int]) -> None:
    return_free_memory()
    save_state(
      self.store, step, state, root=self.root, log_offsets=offsets, prompts=self.pairs_checksum
    )
    self.bests[step] = state.best
    kept = list(self.bests.values())[-self.store.num_kept :]
    self.folder.forget_best({best.step for best in kept if best is not None})
    return_free_memory()
