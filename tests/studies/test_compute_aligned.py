"""The experiments of compute-aligned training: theory, protein model, and a run in miniature."""

import dataclasses
import itertools
import json

import numpy as np
import pytest

from experiments import compute_aligned, finetune
from tea_jax.evaluation.records import Records, Samples
from tea_jax.rewards.proteins import hydrophobicity
from tea_jax.rewards.reasoning_gym import ReasoningGymReward
from tea_jax.runs.groups import EvaluationConfig, RolloutConfig
from tea_jax.runs.presets import Preset
from tea_jax.runs.reward import RewardConfig
from tea_jax.runs.supervised import SupervisedConfig
from tea_jax.studies.compute_aligned import proteins, sums
from tea_jax.studies.compute_aligned.branches import (
  BranchExperiment,
  parse_objective,
  run_branches,
  summarize,
)
from tea_jax.studies.compute_aligned.presets import BRANCHES, REWARDED
from tea_jax.studies.compute_aligned.protein_presets import PROTEINS
from tea_jax.studies.compute_aligned.protein_runs import run_proteins
from tea_jax.studies.compute_aligned.rewarded_runs import RewardedExperiment, run_rewarded
from tests.training import supervised_tiny, tiny


def test_theory_writes_its_numbers(tmp_path):
  folder = tmp_path / "theory"
  assert compute_aligned.main(["--theory", "--run-folder", str(folder), "--no-figure"]) == 0
  found = json.loads((folder / "theory.json").read_text())
  assert [row["first_integer"] for row in found["crossovers"]] == [2, 8, 32]
  assert found["alignment"]["64"]["32"] > found["alignment"]["16"]["32"]
  assert found["efficiency"]["diagonal_efficiency"] == pytest.approx(1.538521, abs=1e-6)
  assert "31.9952" in (folder / "theory.md").read_text()


def test_natural_sequences_are_soluble_but_for_a_few():
  sequences = proteins.natural_sequences(4000, seed=1)
  shares = np.array([hydrophobicity(s) for s in sequences])
  assert 0.33 < shares.mean() < 0.40
  assert 0.005 < np.mean(shares > 0.6) < 0.05
  assert {len(s) for s in sequences} <= set(range(proteins.MIN_RESIDUES, proteins.MAX_RESIDUES))
  assert sequences == proteins.natural_sequences(4000, seed=1)


def test_the_tokenizer_has_a_token_for_each_residue_and_for_the_frame():
  tokenizer = proteins.protein_policy().tokenizer
  ids = tokenizer("Input: ACD \n Output:")["input_ids"]
  assert len(ids) == 5
  assert tokenizer.decode([*ids[1:4], 0], skip_special_tokens=True) == "ACD"


def test_gold_pairs_mirror_the_hydrophobic_share():
  for row in proteins.complement_rows(50, seed=3):
    share = hydrophobicity(row["sequence"])
    assert hydrophobicity(row["completion"]) == pytest.approx(1 - share, abs=0.05)


@pytest.mark.parametrize("name", BRANCHES)
def test_supervised_presets_print_what_they_would_run(name, capsys):
  assert compute_aligned.main(["--preset", name, "--dry-run"]) == 0
  shown = capsys.readouterr().out.splitlines()
  assert all(f"objective: {each}" in shown for each in BRANCHES[name].objectives)
  assert compute_aligned.main(["--preset", name, "--dry-run", "--rules", "pass_at_m"]) == 2
  assert "objective.name='pass_at_m'" in capsys.readouterr().err


def test_objectives_are_read_from_one_word():
  chosen = parse_objective("majority:budget=8,threshold=3")
  assert (chosen.name, chosen.budget, chosen.threshold) == ("majority", 8, 3)
  with pytest.raises(ValueError, match="'samples=4' is not one of"):
    parse_objective("pass_at_n:samples=4")


def test_crossovers_are_measured_between_the_budgets_of_the_table():
  def records(correct):
    """Two prompts with eight samples each, so many of them right."""
    rewards = (np.arange(8) < np.array(correct)[:, None]).astype(np.float64)
    samples = Samples([["1"] * 8] * 2, np.ones((2, 8)), np.ones((2, 8), bool))
    return Records(["a", "b"], np.arange(2), samples, rewards, {"reward": "exact"})

  experiment = dataclasses.replace(
    BRANCHES["cat-sft-small"],
    objectives=("cross_entropy", "pass_at_n:budget=4", "pass_at_n:budget=16"),
    budgets=(1, 4, 8),
  )
  # pass@1, 2, 3 ...: 1/2, 1/2, 1/2; 1/4, 0.464, 0.643; 1/8, 1/4, 3/8 ... 1.
  runs = {
    "cross_entropy": [records([8, 0])],
    "pass_at_n:budget=4": [records([2, 2])],
    "pass_at_n:budget=16": [records([1, 1])],
  }
  found = summarize(experiment, runs)["crossovers"]
  assert [(row["small"], row["large"], row["measured"]) for row in found] == [
    (1, 4, 3),
    (4, 16, 8),
  ]
  assert [row["predicted"] for row in found] == pytest.approx([1.9073, 7.9804], abs=1e-4)
  never = summarize(experiment, runs | {"pass_at_n:budget=4": [records([0, 0])]})["crossovers"]
  assert never[0]["measured"] is None


@pytest.mark.slow
def test_objectives_branch_from_one_warm_up(tmp_path):
  pairs = supervised_tiny.splits()
  pairs["test"] = pairs["train"][:4]
  experiment = BranchExperiment(
    "tiny",
    supervised_tiny.config(tmp_path / "runs", steps=3),
    warm_up_steps=4,
    objectives=("cross_entropy", "pass_at_n:budget=4"),
    seeds=(0, 1),
    sampling=RolloutConfig(num_rollouts=8, max_completion_length=4),
    evaluation=EvaluationConfig(num_prompts=4, num_samples=16),
    reward=RewardConfig(functions=("regex",), options='{"regex": {"pattern": "w1"}}'),
    budgets=(1, 4, 16),
    make_policy=tiny.policy,
  )
  found = run_branches(experiment, splits=pairs)
  assert set(found["curves"]) == {"warm_up", "cross_entropy", "pass_at_n:budget=4"}
  for seeds in found["curves"].values():
    assert np.all(np.diff(seeds, axis=1) >= 0)
  assert found["crossovers"][0]["predicted"] == pytest.approx(1.9073, abs=1e-4)
  assert "pass@16" in (tmp_path / "runs" / "report.md").read_text()


@pytest.mark.parametrize("name", PROTEINS)
def test_presets_print_what_they_would_run(name, capsys):
  assert compute_aligned.main(["--preset", name, "--dry-run"]) == 0
  shown = capsys.readouterr().out.splitlines()
  assert all(f"rule: {each}" in shown for each in PROTEINS[name].preset.rules)
  for rule in PROTEINS[name].preset.rules:
    config = PROTEINS[name].preset.config
    assert rule.split(":")[0] in repr(_rule(config, rule))


def _rule(config, rule):
  from tea_jax.studies.matched_runs import run_config_of

  preset = dataclasses.replace(PROTEINS["cat-protein"].preset, config=config)
  return run_config_of(preset, rule, 0).advantage_rule()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cat-protein", "cat-protein-conditional"])
def test_a_protein_experiment_in_miniature(name, tmp_path):
  experiment = PROTEINS[name]

  def small(run: SupervisedConfig | None, part: str) -> SupervisedConfig | None:
    if run is None:
      return None
    optimizer = dataclasses.replace(run.optimizer, warmup_steps=0)
    folder = str(tmp_path / part)
    return dataclasses.replace(
      run, run_folder=folder, steps=2, validation_every=0, optimizer=optimizer
    )

  config = experiment.preset.config
  config = dataclasses.replace(
    config,
    run_folder=str(tmp_path / "runs"),
    steps=2,
    sampling=dataclasses.replace(config.sampling, num_rollouts=8, max_completion_length=12),
    evaluation=dataclasses.replace(config.evaluation, num_prompts=1, num_samples=64),
  )
  rules = experiment.preset.rules[:2]
  preset = dataclasses.replace(experiment.preset, config=config, rules=rules, seeds=(0, 1))
  found = run_proteins(
    dataclasses.replace(
      experiment,
      preset=preset,
      warm_up=small(experiment.warm_up, "warm_up"),
      second_warm_up=small(experiment.second_warm_up, "gold"),
    )
  )
  assert set(found["best_of_n"]) == {"base", *rules}
  for name, seeds in found["best_of_n"].items():
    assert np.all(np.diff(seeds, axis=1) >= 0), name
    assert sum(found["histogram"][name]) == pytest.approx(1)
  report = (tmp_path / "runs" / "report.md").read_text()
  assert "published: Standard RL" in report
  assert rules[1] in report


def test_finetune_shows_the_config_and_refuses_what_cannot_work(capsys, tmp_path):
  assert finetune.main(["--data.pairs", "gsm8k", "--objective.name", "majority", "--dry-run"]) == 0
  assert "majority" in capsys.readouterr().out
  with pytest.raises(SystemExit):
    finetune.main(["--objective.name", "majority", "--objective.threshold", "99"])
  assert "threshold=99 must be between 1 and" in capsys.readouterr().err
  assert finetune.main(["--run-folder", str(tmp_path / "run")]) == 2
  assert "data.pairs is empty" in capsys.readouterr().err


def test_worked_sums_end_with_what_the_verifier_wants():
  assert sums.work_out("15 - 43 - 75") == " 15 - 43 = -28; -28 - 75 = -103 #### -103"
  assert sums.work_out("7") == " #### 7"
  with pytest.raises(ValueError, match=r"'2 \* 3' is not a sum"):
    sums.work_out("2 * 3")
  rows = list(itertools.islice(sums.worked_sums(), 20))
  columns = {name: [row[name] for row in rows] for name in ("task", "answer", "metadata")}
  reward = ReasoningGymReward(answer_pattern=sums.ANSWER_PATTERN)
  solutions = [row["solution"] for row in rows]
  assert reward([row["prompt"] for row in rows], solutions, **columns).tolist() == [1.0] * 20
  assert reward([row["prompt"] for row in rows], solutions[1:] + solutions[:1], **columns).sum() < 3


def test_bare_sums_fit_the_small_model_and_its_verifiers():
  tokenizer = sums.sum_policy().tokenizer
  rows = list(itertools.islice(sums.bare_sums(), 40))
  assert {row["prompt"].count(" ") for row in rows} == {3, 5}, "two and three terms"
  reward = sums.ANSWER_REWARD.build()
  for row in rows:
    for text in (row["answer"], sums.work_out(row["prompt"].removesuffix(" ="))):
      ids = tokenizer(row["prompt"] + text)["input_ids"]
      assert 1 not in ids, "the start token stands for letters that are not known"
      start = len(tokenizer(row["prompt"])["input_ids"])
      assert tokenizer.decode(ids[start:], skip_special_tokens=True) == text.replace(" ", "")
    columns = {name: [row[name]] for name in ("answer", "task", "metadata")}
    assert list(reward([row["prompt"]], [row["answer"]], **columns)) == [1.0]
    assert list(reward([row["prompt"]], [row["answer"] + "1"], **columns)) != [1.0]


@pytest.mark.parametrize("name", REWARDED)
def test_rewarded_presets_print_what_they_would_run(name, capsys):
  assert compute_aligned.main(["--preset", name, "--dry-run"]) == 0
  assert "grpo" in capsys.readouterr().out
  assert compute_aligned.main(["--preset", name, "--dry-run", "--rules", "grop"]) == 2
  assert "grop" in capsys.readouterr().err


@pytest.mark.slow
def test_rules_run_from_every_warm_up(tmp_path):
  pairs = supervised_tiny.splits()
  pairs["test"] = pairs["train"][:4]
  folder = tmp_path / "runs"
  first = supervised_tiny.config(folder / "first", steps=2)
  second = supervised_tiny.config(folder / "second", steps=2)
  config = tiny.config(
    folder,
    steps=2,
    reward=RewardConfig(
      functions=("regex",),
      options='{"regex": {"pattern": "w1"}}',
      answer_pattern=r"w\d+",
    ),
    evaluation=EvaluationConfig(num_prompts=4, num_samples=16),
  )
  experiment = RewardedExperiment(
    Preset("tiny", config, ("grpo:normalize=true", "cat_majority:budget=4"), seeds=(0, 1)),
    {"one": (first,), "two": (first, second)},
    budgets=(1, 4, 16),
    make_policy=tiny.policy,
  )
  found = run_rewarded(experiment, splits=pairs)
  assert set(found["pass"]["curves"]) == {
    f"{warm_up}, {rule}"
    for warm_up in ("one", "two")
    for rule in ("base", *experiment.preset.rules)
  }
  for name, seeds in found["pass"]["curves"].items():
    assert np.all(np.diff(seeds, axis=1) >= 0), name
    # One sample is one vote.
    votes = found["majority"]["curves"][name]
    np.testing.assert_allclose(np.array(seeds)[:, 0], np.array(votes)[:, 0])
  cell = found["pass"]["minus_first"]["two, grpo:normalize=true"]["4"]
  assert cell[1] <= cell[0] <= cell[2]
  assert cell[3] <= cell[0] <= cell[4]
  assert (folder / "report.md").read_text().count("maj@16") == 2
