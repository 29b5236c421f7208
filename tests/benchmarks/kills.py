"""SIGKILL at random moments of train, finish, evaluate and compare, and damage in between.

    python -m tests.benchmarks.kills FOLDER --minutes 10 --seed 0

A trial starts a command, kills it after a random time of the processor, damages a file that it goes
on from (two of five times), and does so again up to three times; then the command runs to its end.
It must leave the bytes of a run that was left alone, or refuse in one sentence what was damaged.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import importlib
import os
import pathlib
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator

from tests.fuzzing import damaged

_TICKS = os.sysconf("SC_CLK_TCK")
_MODEL = """
from tests.training import tiny
tiny.policy().save_pretrained(FOLDER)
"""
_REWARD = """
def score(prompts, completions):
  words = [[int(w[1:]) for w in text.split() if w.startswith("w")] for text in completions]
  return [sum(w) / 22 / len(w) + 0.01 * len(w) if w else -0.1 for w in words]
"""
_COMMON = (
  "--data.prompts {top}/prompts.jsonl --data.no-chat --data.num-validation 3 --data.num-test 3 "
  "--reward.functions {top}/reward.py:score --sampling.num-rollouts 8 "
  "--sampling.max-completion-length 6"
)
_RUN = (
  "--model.name {top}/model --data.prompts-per-step 2 --steps 5 --optimizer.learning-rate 0.02 "
  "--checkpoint.every 1 --validation.every 2 --validation.num-samples 8 --validation.top 2 "
  "--logging.no-live --logging.samples-every 1"
)


@dataclasses.dataclass(frozen=True)
class Job:
  """A command that can be killed.

  Attributes:
    module: of `experiments`.
    words: its arguments; `{top}` is the folder of all trials, `{folder}` that of one.
    outputs: files, as patterns, that must be the same at the end.
    inputs: files, as patterns, that it goes on from, and that may be damaged.
  """

  module: str
  words: str
  outputs: tuple[str, ...]
  inputs: tuple[str, ...]

  def arguments(self, top: pathlib.Path, folder: pathlib.Path) -> list[str]:
    return [word.format(top=top, folder=folder) for word in self.words.split()]


_TRAINED = ("metrics.jsonl", "rollouts/samples.jsonl", "policy/*.safetensors", "policy/config.json")
JOBS = {
  "train": Job(
    "train", f"--run-folder {{folder}} {_COMMON} {_RUN}", _TRAINED, ("checkpoints/*/*/**/*",)
  ),
  # Begins with all steps done and the selected weights not yet in their place.
  "finish": Job(
    "train", f"--run-folder {{folder}} {_COMMON} {_RUN}", _TRAINED, ("checkpoints/*/*/**/*",)
  ),
  "evaluate": Job(
    "evaluate",
    f"base={{top}}/model again={{top}}/model --output {{folder}} {_COMMON} --no-figures "
    "--evaluation.num-samples 16",
    ("records/*/part-*[0-9].parquet", "records/*/spec.json"),
    ("records/*/part-*.parquet",),
  ),
  "compare": Job(
    "compare",
    f"--rules tea:budget=16 grpo --seeds 0 --run-folder {{folder}} {_COMMON} "
    f"{_RUN.replace('--steps 5', '--steps 3')} --evaluation.num-samples 8",
    (*(f"*/{name}" for name in _TRAINED), "records/*/part-*[0-9].parquet"),
    ("*/checkpoints/*/*/**/*", "records/*/part-*.parquet"),
  ),
}


def campaign(
  top: pathlib.Path, *, seed: int, minutes: float = 1e9, trials: int = 10**9, say=print
) -> collections.Counter:
  """How trials of every job end: "same bytes", "refused", or what went wrong.

  Args:
    top: folder of it all; empty or absent.
    seed: of the moments and the damage.
    minutes, trials: of trials, over all jobs; the runs that are left alone come before.
    say: told of everything that goes wrong.
  """
  _prepare(top)
  ends: collections.Counter = collections.Counter()
  whole = {name: _alone(top, name) for name in JOBS if name != "finish"}
  whole["finish"] = whole["train"]
  stop = time.monotonic() + 60 * minutes
  for trial in range(trials):
    if time.monotonic() > stop:
      break
    name = list(JOBS)[trial % len(JOBS)]
    end, kills, harmed = _trial(top, name, *whole[name], random.Random(f"{seed}/{trial}"))
    ends[name, end] += 1
    ends["kills"] += kills
    ends["damaged files"] += len(harmed)
    if end not in ("same bytes", "refused"):
      say(f"trial {trial} of seed {seed}, {name}: {end}; damaged: {harmed}")
  return ends


def _prepare(top: pathlib.Path) -> None:
  top.mkdir(parents=True)
  (top / "reward.py").write_text(_REWARD)
  rows = (f'{{"prompt": "w{i} w{i + 1}"}}\n' for i in range(12))
  (top / "prompts.jsonl").write_text("".join(rows))
  os.environ["TEA_JAX_CACHE"] = str(top / "cache")
  code, _, said = _run(lambda: exec(_MODEL, {"FOLDER": str(top / "model")}) or 0, top)
  assert code == 0, said


def _alone(top: pathlib.Path, name: str) -> tuple[dict[str, bytes], float]:
  """The outputs of a job that is left alone, and its seconds with a warm compilation cache."""
  job, folder = JOBS[name], top / f"whole_{name}"
  seconds = 0.0
  for _ in range(2):
    shutil.rmtree(folder, ignore_errors=True)
    code, seconds, said = _run(_main(job, top, folder), top)
    assert code == 0, said
  return _outputs(job, folder), seconds


def _trial(
  top: pathlib.Path, name: str, expected: dict[str, bytes], seconds: float, rng: random.Random
) -> tuple[str, int, list[str]]:
  """How it ended, the kills, and the files that were damaged."""
  job, folder = JOBS[name], top / "trial"
  shutil.rmtree(folder, ignore_errors=True)
  if name == "finish":
    shutil.copytree(top / "whole_train", folder)
    _unfinish(folder)
  kills, harmed = 0, []
  for _ in range(rng.randint(1, 4)):
    code, _, said = _run(_main(job, top, folder), top, dies_after=rng.uniform(0.0, 1.1) * seconds)
    if code not in (0, -signal.SIGKILL):
      return _judged(code, said, harmed), kills, harmed
    kills += code != 0
    files = sorted(f for pattern in job.inputs for f in folder.glob(pattern) if f.is_file())
    if files and rng.random() < 0.4:
      harmed.append(_harm(rng.choice(files), rng))
  code, _, said = _run(_main(job, top, folder), top)
  if code != 0:
    return _judged(code, said, harmed), kills, harmed
  found = _outputs(job, folder)
  differing = sorted(k for k in {*expected, *found} if expected.get(k) != found.get(k))
  left = [p.name for p in folder.rglob("*") if p.name.endswith((".saving", ".tmp"))]
  if differing or left:
    return f"other bytes {differing}, left over {left}", kills, harmed
  return "same bytes", kills, harmed


def _judged(code: int, said: str, harmed: list[str]) -> str:
  errors = [line for line in said.splitlines() if line.startswith("error: ")]
  if code == 2 and len(errors) == 1 and "Traceback" not in said and harmed:
    return "refused"
  return f"exit {code}: {said[-600:]}"


def _harm(file: pathlib.Path, rng: random.Random) -> str:
  if rng.random() < 0.2:
    file.unlink()
    return f"{file} deleted"
  file.write_bytes(damaged(file.read_bytes(), rng))
  return str(file)


def _unfinish(folder: pathlib.Path) -> None:
  """A finished run as it is just before its end."""
  import json

  step = json.loads((folder / "finished.json").read_text())["policy_step"]
  (folder / "best_policy").mkdir()
  (folder / "policy").rename(folder / "best_policy" / str(step))
  (folder / "finished.json").unlink()


def _outputs(job: Job, folder: pathlib.Path) -> dict[str, bytes]:
  files = {file for pattern in job.outputs for file in folder.glob(pattern)}
  return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(files)}


def _main(job: Job, top: pathlib.Path, folder: pathlib.Path):
  module = importlib.import_module(f"experiments.{job.module}")
  return lambda: module.main(job.arguments(top, folder))


def _run(work, top: pathlib.Path, *, dies_after: float | None = None) -> tuple[int, float, str]:
  """Exit code (minus the signal), processor seconds and output of `work` in a forked process.

  Fork, because importing everything takes longer than the work; JAX has started no thread by then.
  """
  log = top / "log.txt"
  process = os.fork()
  if process == 0:
    code = 1
    try:
      with log.open("wb") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
      sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
      code = work()
    except BaseException:
      traceback.print_exc()
    finally:
      with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
      os._exit(code)
  used = 0.0
  while True:
    ended, status, usage = os.wait4(process, os.WNOHANG)
    if ended:
      code = os.waitstatus_to_exitcode(status)
      return code, usage.ru_utime + usage.ru_stime, log.read_text(errors="replace")
    used = max(used, _seconds_of(process))
    if dies_after is not None and used >= dies_after:
      os.kill(process, signal.SIGKILL)
      dies_after = None
    time.sleep(0.005)


def _seconds_of(process: int) -> float:
  with contextlib.suppress(OSError, ValueError, IndexError):
    fields = pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS
  return 0.0


def _lines(ends: collections.Counter) -> Iterator[str]:
  for what, count in sorted(ends.items(), key=str):
    yield f"{count:6d}  {what if isinstance(what, str) else ': '.join(what)}"


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("folder", type=pathlib.Path)
  parser.add_argument("--minutes", type=float, default=10.0)
  parser.add_argument("--seed", type=int, default=0)
  flags = parser.parse_args()
  ends = campaign(flags.folder.absolute(), seed=flags.seed, minutes=flags.minutes)
  print("\n".join(_lines(ends)))


if __name__ == "__main__":
  main()
