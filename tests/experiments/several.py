"""Scripts one after the other in one process, or in each of several: `several.py FOLDER`."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import pathlib
import sys

REWARDS = """
import os
from tea_jax.rewards import row_wise


def note(name):
  with open(os.path.join(os.path.dirname(__file__), f"calls_{name}"), "a") as file:
    file.write(os.environ["JAX_PROCESS_ID"])


def length(prompts, completions):
  note("length")
  return [len(text) / 7 for text in completions]


@row_wise
def last_word(prompts, completions):
  note("last_word")
  return [int(text.split()[-1][1:]) / 3 if text else None for text in completions]


def fails(prompts, completions):
  raise OSError("no answer")


@row_wise
def fails_late(prompts, completions):
  note("fails_late")
  return [float("nan") if prompt == "w3 w4" else 1.0 for prompt in prompts]
"""


def main(folder: str) -> None:
  """Prints JSON: what each script said, and its exit code."""
  from tea_jax.runtime import processes

  processes.connect()
  print(json.dumps([called(*each) for each in commands(pathlib.Path(folder))]))


def prepare(folder: pathlib.Path) -> None:
  """Writes a policy, rewards, prompts and pairs."""
  from tests.training import tiny

  folder.mkdir()
  (folder / "rewards.py").write_text(REWARDS)
  rows = [{"prompt": f"w{i} w{i + 1}", "completion": f"w{i + 2} w{i}"} for i in range(12)]
  (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
  tiny.policy().save_pretrained(folder / "base")


def commands(folder: pathlib.Path) -> list[tuple[str, list[str]]]:
  """(script, arguments) in the order in which they run; the prompts make two parts of records."""
  reward = f"--reward.functions {folder}/rewards.py:"
  test = "--data.no-chat --data.num-test 5 --data.num-validation 2 --no-figures"
  test += f" --data.prompts {folder}/rows.jsonl --sampling.max-completion-length 6"

  def evaluation(function: str, policy: str = "base") -> tuple[str, list[str]]:
    sizes = "--sampling.num-rollouts 32 --evaluation.num-samples 32 --evaluation.num-prompts 5"
    own = f"{folder}/{policy} --output {folder}/{function} {reward}{function}"
    return "evaluate", f"{own} {test} {sizes}".split()

  sizes = "--num-prompts 3 --budgets 24 --state-length 2 --methods scaling_law_search"
  own = f"--model.name {folder}/base --verifier {folder}/rewards.py:last_word {reward}length"
  search = ("search", f"{own} {test} {sizes} --output {folder}/search".split())

  pairs = f"--data.pairs {folder}/rows.jsonl --data.no-chat --data.batch-size 4 --steps 3"
  pairs += " --data.num-test 2 --data.num-validation 2 --data.max-length 16 --validation-every 2"
  own = f"--model.name {folder}/base --objective.name hybrid --mesh.data 1 --mesh.fsdp 2"
  finetune = ("finetune", f"{own} {pairs} --logging.no-live --run-folder {folder}/tuned".split())
  return [
    *(evaluation("length"), evaluation("length")),
    *(evaluation("last_word"), evaluation("fails"), evaluation("fails_late")),
    evaluation("length", "missing"),
    *(search, search),
    *(finetune, finetune),
    ("judge", ["a", "b"]),
  ]


def called(name: str, arguments: list[str]) -> dict[str, object]:
  """What a script printed, and how it ended."""
  output, errors = io.StringIO(), io.StringIO()
  with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
    code = importlib.import_module(f"experiments.{name}").main(arguments)
  return {"name": name, "code": code, "said": output.getvalue(), "error": errors.getvalue()}


if __name__ == "__main__":
  main(*sys.argv[1:])
