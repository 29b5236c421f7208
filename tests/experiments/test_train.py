"""The script: presets, files and flags in that order; dry runs; errors in one line."""

import json

import pytest

from experiments import train
from tea_jax.training.config import RunConfig, save_config
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
  from tea_jax.models import hf

  policy = tiny.policy()
  hf.save_pretrained(tmp_path / "model", policy.config, policy.params, policy.tokenizer)
  arguments = f"--dry-run --model.name {tmp_path}/model --run-folder {tmp_path}/run --steps 2"
  assert train.main(arguments.split()) == 0
  shown = capsys.readouterr().out
  count = sum(leaf.size for leaf in __import__("jax").tree.leaves(policy.params))
  for words in ("steps: 2", f"{count:,}", "decode", "at the peak", "tail_fraction=0.25"):
    assert words in shown
  assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_from_the_command_line(tmp_path, capsys):
  from tea_jax.models import hf

  policy = tiny.policy()
  hf.save_pretrained(tmp_path / "model", policy.config, policy.params, policy.tokenizer)
  prompts = tmp_path / "prompts.jsonl"
  prompts.write_text("".join(json.dumps({"prompt": f"w{i} w{i + 1}"}) + "\n" for i in range(12)))
  arguments = (
    f"--model.name {tmp_path}/model --run-folder {tmp_path}/run --steps 2 --data.prompts {prompts} "
    "--data.no-chat --data.num-validation 2 --data.num-test 2 --data.prompts-per-step 2 "
    "--sampling.num-rollouts 8 --sampling.max-completion-length 6 --selection.every 0 "
    "--reward.functions length"
  )
  assert (
    train.main([*arguments.split(), "--reward.options", '{"length": {"minimum": 3, "maximum": 5}}'])
    == 0
  )
  assert (tmp_path / "run" / "policy" / "config.json").exists()
  assert "reward" in capsys.readouterr().out
