"""Flags, YAML and dataclasses are one tree that refuses what cannot work."""

import dataclasses
import json

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tea_jax.runs.config import (
  RunConfig,
  check_resumable,
  differences,
  from_dict,
  load_config,
  save_config,
  to_dict,
)
from tea_jax.runs.flags import parse
from tea_jax.runs.groups import RolloutConfig
from tea_jax.runs.optimizer import OptimizerConfig
from tea_jax.runs.reward import RewardConfig
from tea_jax.training.optimizer import learning_rates


def test_yaml_round_trip_keeps_every_field(tmp_path):
  config = RunConfig(
    steps=7, sampling=RolloutConfig(num_rollouts=8), optimizer=OptimizerConfig(beta1=0.5)
  )
  save_config(config, tmp_path / "config.yaml")
  assert load_config(tmp_path / "config.yaml") == config
  assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]


def test_flags_set_nested_fields():
  flags = "--advantage.name max_at_k --advantage.k 8 --optimizer.learning-rate 3e-6 --steps 9"
  config = parse(RunConfig, flags.split())
  assert config.steps == 9
  assert config.optimizer.learning_rate == 3e-6
  assert config.advantage_rule().parameters["k"] == 8


def test_unknown_rules_and_arguments_are_refused_while_parsing():
  with pytest.raises(ValueError, match="'grpo' has no argument 'k'"):
    parse(RunConfig, ["--advantage.name", "grpo", "--advantage.k", "8"])
  with pytest.raises(ValueError, match="nonsense"):
    parse(RunConfig, ["--advantage.name", "nonsense"])


@pytest.mark.parametrize(
  "flags, words",
  [
    ("--advantage.budget 2", "budget"),
    ("--sampling.top-p 0.9", "--sampling.top-p=0.9 changes the sampling distribution"),
    ("--sampling.temperature 0", "temperature=0.0 must be positive"),
    ("--objective.clip-epsilon-low 0.2", "--objective.clip-epsilon-low=0.2"),
    ("--nonsense 1", "--nonsense"),
  ],
)
def test_impossible_flags_are_refused_while_parsing(flags, words, capsys):
  with pytest.raises(SystemExit):
    parse(RunConfig, flags.split())
  # The message is wrapped into a box.
  said = " ".join(capsys.readouterr().err.replace("│", " ").split())
  assert words in said


@pytest.mark.parametrize(
  "values, words",
  [
    ({"stpes": 3}, "unknown keys 'stpes'; known: run_folder"),
    ({"optimizer": {"lr": 3}}, r"config\.optimizer has unknown keys 'lr'"),
    ({"sampling": 3}, "must hold keys and values"),
    ({"sampling": {"num_rollouts": 4}}, "num_rollouts=4 is too small"),
    ({"sampling": {"top_k": 5}}, "top_k=5 changes the sampling distribution"),
    ({"sampling": {"temperature": 0.0}}, "temperature=0.0 must be positive"),
    ({"advantage": {"name": "grpo", "budget": 128}}, "'grpo' has no argument 'budget'"),
    ({"advantage": {"budget": 2}}, "budget"),
    ({"optimizer": {"micro_batch_rollouts": 24}}, "micro_batch_rollouts=24 must divide"),
    ({"objective": {"clip_epsilon_high": 0.2}}, "no effect with"),
    ({"objective": {"importance_ratio": "sequence"}}, 'ratio="sequence" has no effect with'),
    (
      {"objective": {"kl_placement": "reward", "kl_estimator": "k1", "kl_gradient": "trajectory"}},
      'kl_gradient="trajectory" has no effect with kl_placement="reward"',
    ),
    ({"optimizer": {"final_learning_rate_ratio": 0.1}}, "ratio=0.1 has no effect with schedule"),
    ({"validation": {"top": 40}}, "between 1 and"),
    ({"reward": {"answer_pattern": "("}}, r"'\(' is not a regular expression"),
    ({"reward": {"weights": [1.0, 2.0]}}, "2 entries for 1 functions"),
    ({"evaluation": {"budgets": [256]}}, r"\[256\]"),
    ({"model": {"lora_alpha": 8.0}}, "lora_rank=0"),
    ({"sampling": {"compactions": 4}}, "compactions=4 must be from 0 to 3"),
    ({"optimizer": {"length_buckets": 0}}, "length_buckets=0 must be from 1 to 8"),
    ({"model": {"param_dtype": "bfloat16"}}, 'param_dtype="bfloat16" is for frozen weights'),
    ({"seed": -1}, "seed=-1"),
  ],
)
def test_impossible_configs_are_refused_with_the_value(values, words):
  with pytest.raises(ValueError, match=words):
    from_dict(RunConfig, values)


@pytest.mark.parametrize("micro", [0, 1, 8, 16, 32, 64, 128])
def test_micro_batches_split_groups_or_join_them(micro):
  assert RunConfig(optimizer=OptimizerConfig(micro_batch_rollouts=micro))


def test_numbers_of_yaml_become_floats(tmp_path):
  path = tmp_path / "config.yaml"
  path.write_text(yaml.safe_dump({"sampling": {"temperature": 1}}))
  assert isinstance(load_config(path).sampling.temperature, float)


def test_a_resumed_run_may_change_outputs_but_no_numbers():
  config = RunConfig()
  quiet = dataclasses.replace(config, logging=dataclasses.replace(config.logging, live=False))
  check_resumable(config, quiet)
  with pytest.raises(ValueError, match=r"\(sampling\.num_rollouts: 32 -> 16\)"):
    check_resumable(
      config, dataclasses.replace(config, steps=50, sampling=RolloutConfig(num_rollouts=16))
    )


def test_differences_name_the_path():
  config = RunConfig()
  other = dataclasses.replace(config, optimizer=OptimizerConfig(learning_rate=1.0))
  assert differences(config, other) == ["optimizer.learning_rate: 1e-05 -> 1.0"]


def test_to_dict_is_plain():
  assert yaml.safe_load(yaml.safe_dump(to_dict(RunConfig()))) == to_dict(RunConfig())


@pytest.mark.parametrize(
  "options, expected",
  [
    ({}, [4.0, 4.0, 4.0, 4.0, 4.0, 4.0]),
    ({"warmup_steps": 2}, [2.0, 4.0, 4.0, 4.0, 4.0, 4.0]),
    ({"schedule": "linear"}, [4.0, 10 / 3, 8 / 3, 2.0, 4 / 3, 2 / 3]),
    ({"schedule": "linear", "warmup_steps": 2}, [2.0, 4.0, 4.0, 3.0, 2.0, 1.0]),
    (
      {"schedule": "cosine", "final_learning_rate_ratio": 0.5},
      [3.0 + np.cos(np.pi * i / 6) for i in range(6)],
    ),
  ],
)
def test_schedules_by_hand(options, expected):
  rates = learning_rates(OptimizerConfig(learning_rate=4.0, **options), 6)
  np.testing.assert_allclose(rates, expected, rtol=1e-5)


@pytest.mark.parametrize(
  "values, words",
  [
    ({"optimizer": {"name": "adam"}}, "name='adam' is unknown; choose one of 'adamw'"),
    ({"optimizer": {"schedule": "cosin"}}, "schedule='cosin' is unknown"),
    ({"objective": {"aggregation": "sequence"}}, "aggregation='sequence' is unknown"),
    ({"objective": {"truncated_rollouts": "masked"}}, "truncated_rollouts='masked' is unknown"),
    ({"model": {"compute_dtype": "float16"}}, "compute_dtype='float16' is unknown"),
    ({"model": {"lora_targets": ["qury"]}}, r"lora_targets \['qury'\] are unknown"),
    ({"optimizer": {"learning_rate": "fast"}}, "learning_rate='fast' is a text"),
    ({"optimizer": {"max_skipped": 0}}, "max_skipped=0 must be at least 1"),
    ({"objective": {"entropy_coefficient": -0.01}}, "entropy_coefficient=-0.01 must be >= 0"),
  ],
)
def test_values_that_flags_would_refuse_are_refused_from_yaml_too(values, words):
  with pytest.raises(ValueError, match=words):
    from_dict(RunConfig, values)


def test_numbers_that_yaml_takes_for_texts_are_numbers():
  assert from_dict(RunConfig, yaml.safe_load("optimizer: {learning_rate: 1e-5}")) == RunConfig()


@pytest.mark.parametrize(
  "text, path, expected",
  [
    ("steps: 1e3", "steps", 1000),
    ("steps: 20.0", "steps", 20),
    ("seed: '7'", "seed", 7),
    ("sampling: {num_rollouts: 16.0}", "sampling.num_rollouts", 16),
    ("data: {chat: no}", "data.chat", False),
    ("reward: {functions: lexicon}", "reward.functions", ("lexicon",)),
    ("reward: {weights: 2}", "reward.weights", (2.0,)),
    ("optimizer: {learning_rate: 1e-5}", "optimizer.learning_rate", 1e-5),
    ("\ufeffsteps: 3", "steps", 3),
    ("", "steps", 100),
    ("model:", "model.lora_rank", 0),
  ],
)
def test_values_are_converted_where_nothing_is_lost(tmp_path, text, path, expected):
  (tmp_path / "c.yaml").write_text(text)
  value = load_config(tmp_path / "c.yaml")
  for name in path.split("."):
    value = getattr(value, name)
  assert value == expected
  assert type(value) is type(expected)


@pytest.mark.parametrize(
  "text, words",
  [
    ("steps: x", "steps='x' is a text"),
    ("steps: 1.5", "whole number"),
    ("steps: .inf", "whole number"),
    ("run_folder: 2026-11-29", "quotes"),
    ("model: {name: null}", "model.*name"),
    ("checkpoint: {every: true}", "every"),
    ("optimizer: {learning_rate: .inf}", "learning_rate"),
    ("optimizer: {epsilon: .nan}", "epsilon"),
    ("mesh: {fsdp: -1}", "fsdp"),
    ("logging: {samples_every: -1}", "samples_every"),
    ("data: {chat: 'no'}", "chat.*without quotes"),
    ("model: 0", "must hold keys"),
    ("evaluation: {seed: 4294967296}", "seed"),
    ("reward: {functions: [lexicon, lexicon]}", "lexicon more than once"),
    ("steps: 10\nsteps: 20", "'steps' stands twice.*line 2"),
    ("steps: [1", "not usable YAML"),
    ("steps: !!python/object/apply:os.system ['id']", "not usable YAML"),
    ("steps: 1\n---\nsteps: 2", "not usable YAML"),
    ("a: &a [1]\nb: *a", "aliases"),
    ("[" * 5000, "nested too deeply"),
  ],
)
def test_what_cannot_be_meant_is_one_sentence_with_file_and_field(tmp_path, text, words):
  (tmp_path / "c.yaml").write_text(text)
  with pytest.raises(ValueError, match=words) as caught:
    load_config(tmp_path / "c.yaml")
  assert "c.yaml" in str(caught.value)
  assert len(str(caught.value)) < 1000


def _fields():
  for group in dataclasses.fields(RunConfig):
    inner = getattr(RunConfig(), group.name)
    if dataclasses.is_dataclass(inner):
      yield from ((group.name, field.name) for field in dataclasses.fields(inner))
    else:
      yield (group.name,)


ODD = [
  *(None, True, -1, 0, 1.5, 1e400, float("nan"), 10**400, "x", "", "1", b"x", [], ["x"], {}),
  *({"a": 1}, [[1]], "\x00", -(2**70)),
]


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(list(_fields())), st.sampled_from(ODD))
def test_every_field_refuses_or_holds_its_own_type(path, value):
  values = {path[0]: value} if len(path) == 1 else {path[0]: {path[1]: value}}
  try:
    config = from_dict(RunConfig, values)
  except ValueError as error:
    text = str(error)
    assert path[-1] in text or path[0] in text
    return
  held, before = config, RunConfig()
  for name in path:
    held, before = getattr(held, name), getattr(before, name)
  assert not isinstance(held, (dict, list, bytes))
  if before is not None and held is not None:
    assert type(held) is type(before)


def test_secrets_of_rewards_are_in_no_file(tmp_path):
  url = "http://me:SECRET@host/score"
  options = {url: {"headers": {"Authorization": "Bearer SECRET"}, "timeout": 5}}
  reward = RewardConfig(functions=(url,), options=json.dumps(options))
  config = RunConfig(reward=reward)
  save_config(config, tmp_path / "c.yaml")
  assert "SECRET" not in (tmp_path / "c.yaml").read_text()
  stored = load_config(tmp_path / "c.yaml")
  check_resumable(stored, config)
  # Where the server is and how it is asked may change, what it is sent may not.
  moved = RewardConfig(functions=("https://other/",), options='{"https://other/": {"timeout": 9}}')
  check_resumable(stored, RunConfig(reward=moved))
  columns = '{"https://other/": {"columns": ["answer"]}}'
  with pytest.raises(ValueError, match=r"reward\.options"):
    check_resumable(stored, RunConfig(reward=dataclasses.replace(moved, options=columns)))
