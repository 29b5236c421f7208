"""The script: presets, files and flags in that order; dry runs; errors in one line."""

import re
import signal

import pytest

from experiments import train
from tea_jax.runs.config import RunConfig, save_config
from tests.training import tiny


def test_flags_override_the_preset():
  config, dry = train.parse(["--preset", "quickstart", "--steps", "9", "--advantage.name", "grpo"])
  assert (config.steps, config.advantage.name, config.sampling.num_rollouts) == (9, "grpo", 32)
  assert not dry


def test_flags_override_a_file(tmp_path):
  save_config(RunConfig(steps=7, seed=3), tmp_path / "run.yaml")
  config, dry = train.parse(f"--config {tmp_path}/run.yaml --seed 5 --dry-run".split())
  assert (config.steps, config.seed) == (7, 5)
  assert dry


@pytest.mark.parametrize(
  "arguments, words",
  [
    ("--preset nonsense", "nonsense"),
    ("--preset quickstart --config x.yaml", "exclude each other"),
    ("--config /nothing.yaml", "/nothing.yaml"),
    ("--dry-run --model.name /nothing", "/nothing"),
  ],
)
def test_errors_are_one_line(arguments, words, capsys):
  assert train.main(arguments.split()) == 2
  error = capsys.readouterr().err
  assert words in error
  assert error.startswith("error: ")
  assert error.count("\n") == 1


def test_a_dry_run_of_a_folder_prints_what_would_run(tmp_path, capsys):
  from tea_jax.models.weights import huggingface

  policy = tiny.policy()
  huggingface.save_pretrained(tmp_path / "model", policy.config, policy.params, policy.tokenizer)
  arguments = f"--dry-run --model.name {tmp_path}/model --run-folder {tmp_path}/run --steps 2"
  assert train.main(arguments.split()) == 0
  shown = capsys.readouterr().out
  count = sum(leaf.size for leaf in __import__("jax").tree.leaves(policy.params))
  assert re.search(r"steps +2 +100", shown)
  for words in (f"{count:,}", "decode", "at the peak", "tail_fraction=0.25"):
    assert words in shown
  assert not (tmp_path / "run").exists()


def _flags(tmp_path, steps):
  from tea_jax.models.weights import huggingface

  policy = tiny.policy()
  huggingface.save_pretrained(tmp_path / "model", policy.config, policy.params, policy.tokenizer)
  own = f"--model.name {tmp_path}/model --steps {steps} --sampling.num-rollouts 8"
  return [*own.split(), "--validation.every", "0", *tiny.flags(tmp_path)]


@pytest.mark.slow
def test_a_run_from_the_command_line(tmp_path, capsys):
  reward = ["--reward.functions", "length"]
  reward += ["--reward.options", '{"length": {"minimum": 3, "maximum": 5}}']
  assert train.main([*_flags(tmp_path, 2), *reward]) == 0
  assert (tmp_path / "run" / "policy" / "config.json").exists()
  assert "| rewards | length |" in (tmp_path / "run" / "policy" / "README.md").read_text()
  assert (tmp_path / "run" / "curves.png").exists()
  assert "reward" in capsys.readouterr().out


@pytest.mark.slow
def test_the_notice_of_a_cluster_stops_a_run_that_goes_on_later(tmp_path, capsys, monkeypatch):
  (tmp_path / "preempted.py").write_text(
    "import os, signal\n"
    "calls = 0\n"
    "def score(prompts, completions):\n"
    "  global calls\n"
    "  calls += 1\n"
    "  if calls == 3:\n"
    "    os.kill(os.getpid(), signal.SIGTERM)\n"
    "  return [float(len(text)) for text in completions]\n"
  )
  monkeypatch.syspath_prepend(tmp_path)
  before = signal.getsignal(signal.SIGTERM)
  flags = [*_flags(tmp_path, 4), "--reward.functions", "preempted:score", "--checkpoint.every", "0"]
  assert train.main(flags) == 130
  assert "the same command goes on" in capsys.readouterr().err
  assert not (tmp_path / "run" / "policy").exists()
  assert train.main(flags) == 0
  assert signal.getsignal(signal.SIGTERM) == before
  # The two finished steps were kept, although no checkpoint was due.
  assert "going on from step 3" in capsys.readouterr().out
  assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 4
