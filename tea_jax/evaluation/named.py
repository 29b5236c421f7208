"""Records of a policy by its name: weights, a run at some KL, a server, or a file of rewards."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

from tea_jax.evaluation import sources
from tea_jax.evaluation.drawn_back import drawn_to_kl
from tea_jax.evaluation.records import Records
from tea_jax.evaluation.reward_files import is_reward_file, read_reward_file
from tea_jax.rewards import RewardFunction
from tea_jax.runs.datasets import Splits, encode


def records_of(
  name: str,
  settings: sources.HeldOut,
  splits: Callable[[], Splits],
  reward: Callable[[], RewardFunction],
  *,
  folder: pathlib.Path,
  at_kl: float | None = None,
  say: Callable[[str], None] = print,
) -> tuple[Records, str]:
  """Records of one policy on the held-out prompts, and what it was, for the report.

  Args:
    name: of a model, a folder, a run, a server or a file of rewards.
    settings: of the evaluation.
    splits, reward: called where completions are sampled.
    folder: of the records; its name is the policy's label.
    at_kl: draws a run's weights back until its KL is this, see `drawn_back`; None leaves them.
    say: told what happens, a line at a time.
  """
  if is_reward_file(name):
    return read_reward_file(name), name
  prompts = splits()["test"][: settings.evaluation.num_prompts]
  about = f"prompts x {settings.evaluation.num_samples} completions"

  def progress(done: int, total: int) -> None:
    say(f"  {done}/{total}")

  if sources.is_server(name):
    say(f"{folder.name}: {len(prompts)} {about}")
    found = sources.evaluate_server(
      name, settings, prompts, reward(), folder=folder, progress=progress
    )
    return found, name
  policy, told = sources.load_finished(name, settings), name
  encoded = encode(prompts, policy, settings.data, settings.sampling)
  if at_kl is not None and sources.is_run(name):
    say(f"{folder.name}: looking for a KL of {at_kl:g}")
    known = folder.with_name(f"{folder.name}.at_kl.json")
    policy, place = drawn_to_kl(policy, name, settings, encoded, at_kl, found_before=known)
    told = f"{name}, {place}"
    say(told)
  say(f"{folder.name}: {len(encoded)} {about}")
  found = sources.evaluate_weights(
    policy, settings, encoded, reward(), folder=folder, progress=progress
  )
  return found, told
