"""experiments.evaluate and experiments.tail_diagnostics on a tiny policy and stored records."""

import json
import re

import jax
import numpy as np
import pytest
import yaml

from experiments import command, evaluate, tail_diagnostics, train
from tea_jax.data import make_prompt
from tea_jax.evaluation import drawn_back, sources
from tea_jax.evaluation.evaluate import evaluate_policy
from tea_jax.evaluation.records import Samples, read_records

REWARD = """
def ends(prompts, completions):
  return [sum(map(ord, text)) % 97 / 10 for text in completions]
"""


@pytest.fixture(scope="module")
def policy_folder(tmp_path_factory):
  """A two-layer Llama with one token a letter."""
  from tokenizers import Tokenizer, models, pre_tokenizers
  from transformers import PreTrainedTokenizerFast

  from tea_jax.models.causal_lm import init_params
  from tea_jax.models.config import ModelConfig
  from tea_jax.models.weights import huggingface

  letters = ["<eos>", *"abcdefghijklmnopqrstuvwxyz .,"]
  backend = Tokenizer(models.WordLevel({x: i for i, x in enumerate(letters)}, unk_token="."))
  backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
  tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", unk_token=".")
  config = ModelConfig(
    architecture="Llama",
    vocab_size=len(letters),
    hidden_size=16,
    intermediate_size=32,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    max_positions=128,
    eos_token_ids=(0,),
  )
  folders = []
  for seed in (0, 1):
    folder = tmp_path_factory.mktemp("policies") / f"policy{seed}"
    huggingface.save_pretrained(
      folder, config, init_params(config, jax.random.key(seed)), tokenizer
    )
    folders.append(str(folder))
  return folders


@pytest.fixture
def arguments(policy_folder, tmp_path, monkeypatch):
  monkeypatch.setenv("TEA_JAX_CACHE", str(tmp_path / "cache"))
  (tmp_path / "rewards.py").write_text(REWARD)
  (tmp_path / "prompts.txt").write_text("".join(f"prompt {c}\n" for c in "abcdefghij"))
  return [
    *policy_folder,
    *("--output", str(tmp_path / "out"), "--no-figures"),
    *("--data.prompts", str(tmp_path / "prompts.txt"), "--data.no-chat"),
    *("--data.num-test", "5", "--data.num-validation", "0", "--data.prompts-per-step", "2"),
    *("--reward.functions", f"{tmp_path / 'rewards.py'}:ends"),
    *("--sampling.num-rollouts", "4", "--sampling.max-completion-length", "6"),
    *("--evaluation.num-prompts", "5", "--evaluation.num-samples", "16"),
  ]


@pytest.mark.slow
def test_two_policies_are_evaluated_on_the_same_prompts_and_reported(
  arguments, tmp_path, capsys, monkeypatch
):
  assert evaluate.main(arguments) == 0
  first, second = (read_records(tmp_path / "out" / "records" / f"policy{i}") for i in (0, 1))
  assert first.prompts == second.prompts
  assert first.rewards.shape == (5, 16)
  assert not np.array_equal(first.rewards, second.rewards)
  text = (tmp_path / "out" / "report.md").read_text()
  assert "Paired difference to policy0" in text
  results = json.loads((tmp_path / "out" / "results.json").read_text())
  difference = second.rewards.mean() - first.rewards.mean()
  np.testing.assert_allclose(results["difference"]["policy0"]["policy1"]["estimate"][0], difference)
  report = (tmp_path / "out" / "report.md").read_text()
  monkeypatch.setattr(sources, "engine_sampler", lambda *a, **k: pytest.fail)
  assert evaluate.main(arguments) == 0  # everything is read from the records
  assert (tmp_path / "out" / "report.md").read_text() == report
  capsys.readouterr()
  others = {
    "--data.max-prompt-length 99": "template",
    "--reward.weights 2": "reward: '1 ",
    "--sampling.num-rollouts 8": "sampling",
    "--model.compute-dtype bfloat16": "compute_dtype",
  }
  for changed, named in others.items():
    assert evaluate.main([*arguments, *changed.split()]) == 2
    assert f"records of another evaluation ({named}" in capsys.readouterr().err


def test_a_dry_run_shows_the_presets_settings(capsys):
  assert evaluate.main(["base=x", "--preset", "paper-main", "--dry-run"]) == 0
  shown = yaml.safe_load(capsys.readouterr().out)
  assert shown["policies"] == {"base": ["x"]}
  assert shown["evaluation"]["num_samples"] == 256
  assert shown["data"]["prompts"] == "ultrafeedback"


def test_labels_stand_before_the_first_sign_and_paths_speak_for_themselves(tmp_path):
  odd = tmp_path / "tea_budget=64"
  odd.mkdir()
  found = command.labelled([f"tea={odd}", str(odd), "plain"])
  assert found == {"tea": str(odd), "tea_budget=64": str(odd), "plain": "plain"}
  with pytest.raises(ValueError, match="two are called 'base'"):
    command.labelled(["runs/a/base", "runs/b/base"])


@pytest.mark.parametrize(
  "words, message",
  [
    ([], "name at least one policy"),
    (["a=x", "a=y"], "two are called 'a'"),
    (["no/such/folder"], "no/such/folder"),
  ],
)
def test_impossible_policies_are_one_sentence(words, message, capsys, arguments):
  assert evaluate.main([*words, *arguments[2:]]) == 2
  assert message in capsys.readouterr().err


def store(folder, rewards):
  prompts = [make_prompt(f"p{i}") for i in range(len(rewards))]

  def sampler(indices):
    shape = (len(indices), rewards.shape[1])
    texts = [[f"{value!r}" for value in rewards[i].tolist()] for i in indices]
    return Samples(texts, np.ones(shape, int), np.ones(shape, bool))

  evaluate_policy(
    sampler,
    prompts,
    lambda prompts, completions: [float(text) for text in completions],
    folder=folder,
    num_samples=rewards.shape[1],
  )


def test_tail_diagnostics_of_gaussian_rewards_find_a_gaussian_tail(tmp_path, capsys):
  pytest.importorskip("matplotlib")
  rng = np.random.default_rng(0)
  store(tmp_path / "normal", rng.normal(size=(40, 256)))
  store(tmp_path / "binary", (rng.random((40, 256)) < 0.3).astype(float))
  folders = [f"normal={tmp_path / 'normal'}", f"binary={tmp_path / 'binary'}"]
  assert tail_diagnostics.main([*folders, "--output", str(tmp_path / "out")]) == 0
  text = (tmp_path / "out" / "tail.md").read_text()
  table = [line for line in text.splitlines() if line.startswith("| normal |")]
  assert float(table[0].split("|")[2]) > 0.97
  constant = next(line for line in text.splitlines() if line.startswith("| binary |"))
  assert int(constant.split("|")[7]) == 40
  assert "published: TEA | 0.980 | 0.966 | 0.939 | 86.0 %" in text
  # Tails fitted to 32 normal rewards predict best of 128 within a tenth on average.
  predicted = next(line for line in table if line.split("|")[2].strip() == "128")
  assert abs(float(predicted.split("|")[4].split()[0])) < 0.35
  assert (tmp_path / "out" / "qq.png").exists()


def test_tail_diagnostics_refuse_too_few_completions(tmp_path, capsys):
  store(tmp_path / "few", np.random.default_rng(0).normal(size=(3, 16)))
  assert tail_diagnostics.main([str(tmp_path / "few"), "--output", str(tmp_path / "out")]) == 2
  assert "num_fitted=32 must be at least 8 and below the 16" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_is_drawn_back_to_a_kl(policy_folder, arguments, tmp_path, capsys, monkeypatch):
  run = tmp_path / "run"
  shared = arguments[arguments.index("--data.prompts") :]
  settings = shared[: shared.index("--evaluation.num-prompts")]
  learning = ["--steps", "4", "--optimizer.learning-rate", "0.02", "--optimizer.warmup-steps", "0"]
  learning += ["--advantage.name", "grpo"]
  quiet = ["--validation.every", "0", "--run-folder", str(run)]
  assert train.main(["--model.name", policy_folder[0], *settings, *learning, *quiet]) == 0
  policies = [f"base={policy_folder[0]}", f"run={run}"]
  rest = arguments[len(policy_folder) :]
  assert evaluate.main([*policies, *rest, "--at-kl", "0.02"]) == 0
  told = re.search(r"(0\.\d+) of the way from its base, KL (0\.\d+)", capsys.readouterr().out)
  assert told is not None
  assert 0 < float(told[1]) < 1
  assert float(told[2]) == pytest.approx(0.02, rel=0.1)
  assert told[0] in (tmp_path / "out" / "report.md").read_text()
  monkeypatch.setattr(drawn_back, "measured_kl", lambda *a, **k: pytest.fail)
  assert evaluate.main([*policies, *rest, "--at-kl", "0.02"]) == 0  # found before
  assert told[0] in capsys.readouterr().out
  monkeypatch.undo()
  assert evaluate.main([*policies, *rest, "--at-kl", "90", "--output", str(tmp_path / "far")]) == 2
  assert "choose a smaller KL" in capsys.readouterr().err
