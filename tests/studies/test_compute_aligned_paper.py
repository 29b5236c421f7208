"""The presets of the paper on tiny weights of their architectures: adapters, sampling, rules."""

import dataclasses
import json

import pytest

from tea_jax.models.causal_lm import init_params
from tea_jax.models.policy import Policy
from tea_jax.runs.groups import CheckpointConfig, LoggingConfig
from tea_jax.runs.reward import RewardConfig
from tea_jax.studies.compute_aligned import proteins
from tea_jax.studies.compute_aligned.branches import run_branches
from tea_jax.studies.compute_aligned.presets import BRANCHES, REWARDED
from tea_jax.studies.compute_aligned.protein_presets import PROTEINS
from tea_jax.studies.compute_aligned.protein_runs import run_proteins
from tea_jax.studies.compute_aligned.rewarded_runs import run_rewarded
from tests.training import supervised_tiny, tiny

pytestmark = pytest.mark.slow

REWARD = RewardConfig(
  functions=("regex",), options='{"regex": {"pattern": "w1"}}', answer_pattern=r"w\d+"
)


def mistral() -> Policy:
  import jax

  config = dataclasses.replace(tiny.MODEL, architecture="Mistral", sliding_window=9)
  params = init_params(config, jax.random.key(0))
  return Policy(config=config, params=params, tokenizer=tiny.tokenizer())


def pairs():
  found = supervised_tiny.splits()
  return {**found, "test": found["train"][:2]}


def short(run, folder, **changes):
  """A run of two updates on short texts; what it learns, and with what, is left alone."""
  small = {
    "steps": 2,
    "run_folder": str(folder),
    "logging": LoggingConfig(live=False, samples_every=0),
    "checkpoint": CheckpointConfig(every=0, final_policy="last"),
    "model": dataclasses.replace(run.model, compute_dtype="float32"),
  }
  return dataclasses.replace(run, **small, **changes)


def short_supervised(run, folder):
  return short(
    run,
    folder,
    validation_every=0,
    data=dataclasses.replace(run.data, chat=False, system_prompt="", max_length=16, batch_size=4),
  )


def short_rewarded(run, folder):
  return short(
    run,
    folder,
    reward=REWARD,
    data=dataclasses.replace(
      run.data, chat=False, system_prompt="", max_prompt_length=8, prompts_per_step=2
    ),
    sampling=dataclasses.replace(run.sampling, max_completion_length=4),
    evaluation=dataclasses.replace(run.evaluation, num_prompts=2),
  )


@pytest.mark.parametrize("name", ["cat-sft-math", "cat-majority-math"])
def test_supervised_settings_train_a_mistral(name, tmp_path):
  experiment = BRANCHES[name]
  experiment = dataclasses.replace(
    experiment,
    config=short_supervised(experiment.config, tmp_path),
    warm_up_steps=2,
    objectives=experiment.objectives[:2],
    sampling=dataclasses.replace(experiment.sampling, max_completion_length=4),
    evaluation=dataclasses.replace(experiment.evaluation, num_prompts=2),
    reward=REWARD,
    make_policy=mistral,
  )
  found = run_branches(experiment, splits=pairs())
  assert set(found["curves"]) == {"warm_up", *experiment.objectives}
  assert "published: cross_entropy" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize("name", ["cat-rl-math", "cat-rl-majority-math"])
def test_reinforcement_settings_train_a_mistral(name, tmp_path):
  experiment = REWARDED[name]
  preset = dataclasses.replace(
    experiment.preset,
    config=short_rewarded(experiment.preset.config, tmp_path),
    rules=experiment.preset.rules[:2],
  )
  warm_ups = {
    label: tuple(short_supervised(run, tmp_path / f"{label}-{i}") for i, run in enumerate(stages))
    for label, stages in experiment.warm_ups.items()
  }
  sampling = experiment.sampling or preset.config.sampling
  sampling = dataclasses.replace(sampling, max_completion_length=4)
  experiment = dataclasses.replace(
    experiment, preset=preset, warm_ups=warm_ups, make_policy=mistral, sampling=sampling
  )
  found = run_rewarded(experiment, splits=pairs())
  (metric,) = experiment.metrics
  assert set(found[metric]["curves"]) == {"base", *preset.rules}
  drawn = json.loads((tmp_path / "cross_entropy" / "eval" / "base" / "spec.json").read_text())
  assert drawn["sampling"]["temperature"] == (0.7 if metric == "pass" else 0.8)
  assert "published: Standard" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
  "name, rollouts, learning_rate, temperature, kl",
  [
    ("cat-protein-paper", 32, 1e-5, 1.2, 0.3),
    ("cat-protein-conditional-paper", 25, 2e-6, 1.3, 0.05),
  ],
)
def test_proteins_have_the_published_settings(name, rollouts, learning_rate, temperature, kl):
  config = PROTEINS[name].preset.config
  sampling = config.sampling
  assert (sampling.num_rollouts, sampling.temperature) == (rollouts, temperature)
  assert config.optimizer.learning_rate == learning_rate
  # Published of the mean over tokens; ours weighs the sum of a completion.
  assert config.objective.kl_coefficient * sampling.max_completion_length == pytest.approx(kl)
  assert config.steps == 300 or "conditional" in name


@pytest.mark.parametrize("name", ["cat-protein-paper", "cat-protein-conditional-paper"])
def test_protein_settings_train_a_gpt2(name, tmp_path):
  folder = tmp_path / "model"
  proteins.protein_policy().save_pretrained(folder)
  experiment = PROTEINS[name]
  config = experiment.preset.config
  config = short(
    config,
    tmp_path / "runs",
    sampling=dataclasses.replace(config.sampling, num_rollouts=8, max_completion_length=16),
    evaluation=dataclasses.replace(config.evaluation, num_prompts=2, num_samples=64),
  )
  config = dataclasses.replace(config, model=dataclasses.replace(config.model, name=str(folder)))
  if not experiment.conditional:  # ProtGPT2's start token is another
    config = dataclasses.replace(
      config, data=dataclasses.replace(config.data, prompts=proteins.START)
    )
  second = experiment.second_warm_up
  if second is not None:
    second = dataclasses.replace(
      short(second, tmp_path / "gold", validation_every=0), model=config.model
    )
  preset = dataclasses.replace(experiment.preset, config=config, rules=experiment.preset.rules[:2])
  found = run_proteins(dataclasses.replace(experiment, preset=preset, second_warm_up=second))
  assert set(found["best_of_n"]) == {"base", *preset.rules}
