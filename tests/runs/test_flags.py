"""`--advantage.*`: any argument of any rule's factory, beside tyro's flags."""

import dataclasses
import importlib

import pytest

from experiments import compare, evaluate, oracle_alignment, train
from tea_jax.advantages import AdvantageSpec
from tea_jax.runs import flags
from tea_jax.runs.config import RunConfig, load_config, save_config
from tea_jax.runs.groups import RolloutConfig
from tests.training import tiny


def parsed(words, default=None):
  return flags.parse(RunConfig, words.split(), default=default).advantage


@pytest.mark.parametrize(
  ("words", "spec"),
  [
    ("", "tea"),
    ("--advantage.name subset_tea --advantage.budget 64", "subset_tea:budget=64"),
    ("--advantage.budget=64 --steps 9", "tea:budget=64"),
    ("--steps 9 --advantage tea:budget=64", "tea:budget=64"),
    ("--advantage tea budget=64 --steps 9", "tea:budget=64"),
    ("--advantage.name grpo --advantage.normalize", "grpo:normalize=true"),
    ("--advantage.name tea:tail_fraction=0.5", "tea:tail_fraction=0.5"),
    (
      "--advantage.name tea:budget=9,tail_fraction=0.5 --advantage.budget 64",
      "tea:tail_fraction=0.5,budget=64",
    ),
    (
      "--advantage.name prefix_tea --advantage.fractions 0.5 1 --advantage.order 1 --advantage."
      "shuffle False",
      "prefix_tea:fractions=0.5,1.0,order=1,shuffle=false",
    ),
    ("--advantage.name bon_rl --advantage.baseline -2.5", "bon_rl:baseline=-2.5"),
  ],
)
def test_flags_choose_the_rule_and_its_arguments(words, spec):
  assert parsed(words) == AdvantageSpec.parse(spec)


def test_a_flag_changes_the_default_rule_and_a_new_name_starts_afresh():
  base = RunConfig(advantage=AdvantageSpec("tea", {"budget": 64, "tail_fraction": 0.5}))
  assert parsed("--advantage.budget 32", default=base) == AdvantageSpec.parse(
    "tea:tail_fraction=0.5,budget=32"
  )
  assert parsed("--steps 3", default=base) == base.advantage
  assert parsed("--advantage.name tea", default=base) == base.advantage
  assert parsed("--advantage.name grpo", default=base) == AdvantageSpec("grpo")


def test_help_lists_the_rules_and_the_arguments_of_the_one_that_is_named(capsys):
  with pytest.raises(SystemExit):
    parsed("--help --advantage.name max_at_k")
  said = " ".join(capsys.readouterr().out.split())
  assert "blended_influence: Influence of each reward" in said
  assert "--advantage.leave-one-out subtract from each subset's maximum" in said
  assert "(default: False)" in said


@pytest.mark.parametrize(
  "words, said",
  [
    ("--sampling.temperature 0", "--sampling.temperature=0.0 must be positive"),
    ("--steps 0", "--steps=0 must"),
    ("--data.prompts-per-step 0", "--data.prompts-per-step=0 must"),
    ("--checkpoint.every -1", "--checkpoint.every=-1 must"),
    ("--evaluation.budgets 9999", "--evaluation.num-samples=128"),
    ("--objective.clip-epsilon-low 0.1", "no effect with --optimizer.updates-per-batch=1"),
    ("--sampling.num-rollouts 2 --advantage.name tea", "--sampling.num-rollouts=2 is too small"),
    ("--validation.top 0", "--validation.top=0 must be between 1 and --validation.num-samples"),
  ],
)
def test_errors_of_a_config_name_the_flag(words, said, capsys):
  with pytest.raises(SystemExit):
    parsed(words)
  shown = " ".join(capsys.readouterr().err.replace("│", " ").split())
  assert said in shown
  with pytest.raises(ValueError, match=r"^temperature=0"):
    RunConfig(sampling=RolloutConfig(temperature=0))  # in Python there are no flags


def test_only_fields_become_flags():
  for text in ("a.b=1 of file.yaml: top of it", "see tea_jax.runs.data", "reward.png", "steps are"):
    assert flags.as_flags(text, RunConfig) == text


def helped(words, capsys):
  with pytest.raises(SystemExit) as stopped:
    parsed(words)
  assert stopped.value.code == 0
  return capsys.readouterr().out


def test_help_begins_with_ten_flags_and_fits_a_terminal(capsys, monkeypatch):
  monkeypatch.setenv("COLUMNS", "80")
  said = helped("--steps 7 --help", capsys).splitlines()
  assert len(said) < 60
  assert all(len(line) <= 100 for line in said)
  flags_shown = [line.split()[0].rstrip(",") for line in said if line.startswith("  --")]
  assert len(flags_shown) == 10
  assert "--advantage.name" in flags_shown
  groups = [line.split()[0] for line in said[-12:]]
  assert groups == [name for name, group in vars(RunConfig()).items() if hasattr(group, "__dict__")]


def test_help_of_a_group_names_each_of_its_flags_with_what_it_does(capsys):
  for name, group in vars(RunConfig()).items():
    if name == "advantage" or not dataclasses.is_dataclass(group):
      continue
    said = helped(f"--help {name}", capsys)
    for field in dataclasses.fields(group):
      flag = f"  --{name}.{field.name.replace('_', '-')}"
      about = said.partition(f"{flag}\n")[2] or said.partition(f"{flag}, ")[2]
      assert about.strip()
      assert not about.strip().startswith("(default"), flag
  assert "  --data.chat, --data.no-chat" in helped("--help data", capsys).splitlines()
  assert "--sampling.num-rollouts" in helped("--help all", capsys)
  with pytest.raises(ValueError, match="no such group"):
    parsed("--help nonsense")


@pytest.mark.parametrize(
  ("script", "own", "group"),
  [
    ("compare", "--match-kl", "optimizer"),
    ("evaluate", "--server-model", "evaluation"),
    ("finetune", "--epochs", "objective"),
    ("search", "--state-length", "sampling"),
    ("oracle_alignment", "--pool-size", "mesh"),
  ],
)
def test_every_script_of_many_flags_has_a_short_help(script, own, group, capsys, monkeypatch):
  monkeypatch.setenv("COLUMNS", "80")
  main = importlib.import_module(f"experiments.{script}").main
  pages = {}
  for topic in ("", group):
    with pytest.raises(SystemExit) as stopped:
      main(["--help", topic] if topic else ["--help"])
    assert stopped.value.code == 0
    pages[topic] = capsys.readouterr().out.splitlines()
  assert len(pages[""]) < 90
  shown = [line for line in pages[""] if line.startswith("  --")]
  assert any(line.startswith(f"  {own}") for line in shown)
  about = pages[""][
    pages[""].index(next(line for line in shown if line.startswith(f"  {own}"))) + 1
  ]
  assert not about.strip().startswith("(default")
  assert any(line.split()[:1] == [group] for line in pages[""])
  assert all(line.startswith(f"  --{group}.") for line in pages[group] if line.startswith("  --"))
  assert main(["--help", "nonsense"]) == 2
  assert "no such group" in capsys.readouterr().err


def test_values_survive_the_run_folder(tmp_path):
  spec = AdvantageSpec.parse("prefix_tea:fractions=0.5,1.0,order=1")
  save_config(RunConfig(advantage=spec), tmp_path / "config.yaml")
  assert "fractions:" in (tmp_path / "config.yaml").read_text()
  assert load_config(tmp_path / "config.yaml").advantage == spec
  (tmp_path / "config.yaml").write_text("advantage: {name: tea, budget: 64}")
  assert load_config(tmp_path / "config.yaml").advantage == AdvantageSpec("tea", {"budget": 64})
  (tmp_path / "config.yaml").write_text("advantage: tea:budget=64")
  assert load_config(tmp_path / "config.yaml").advantage == AdvantageSpec("tea", {"budget": 64})


def test_configs_of_version_0_1_list_arguments_that_were_not_set(tmp_path):
  (tmp_path / "config.yaml").write_text(
    "advantage: {name: cat_pass_at_n, budget: 8, weight_clip: null, k: null, options: []}"
  )
  loaded = load_config(tmp_path / "config.yaml").advantage
  assert loaded == AdvantageSpec("cat_pass_at_n", {"budget": 8})


RULE = "def signed(*, margin: float = 0.0):\n  return lambda rewards: rewards - margin\n"


@pytest.fixture
def user_file(tmp_path, monkeypatch):
  (tmp_path / "my_rule.py").write_text(RULE)
  monkeypatch.chdir(tmp_path)
  return tmp_path


def test_every_script_takes_a_rule_from_a_users_file(user_file, capsys):
  spec = AdvantageSpec("my_rule.py:signed", {"margin": 0.5})
  config, _ = train.parse(["--advantage.name", "my_rule.py:signed", "--advantage.margin", "0.5"])
  assert config.advantage == spec
  tiny.policy().save_pretrained("model")
  words = (
    "--preset quickstart --dry-run --model.name model --rules grpo my_rule.py:signed:margin=0.5"
  )
  assert compare.main(words.split()) == 0
  assert "rule: my_rule.py:signed(margin=0.5)" in capsys.readouterr().out
  words = ["--synthetic", "--rules", "my_rule.py:signed:margin=0.5"]
  rules = oracle_alignment.build_rules(oracle_alignment.parse(words))
  assert rules["my_rule.py:signed:margin=0.5"].parameters == {"margin": 0.5}


def test_a_finished_policy_is_evaluated_without_its_rule(user_file):
  save_config(RunConfig(advantage=AdvantageSpec("my_rule.py:signed")), "run/config.yaml")
  (user_file / "my_rule.py").unlink()
  policies, found, _ = evaluate.parse(["mine=run"])
  assert policies == {"mine": ["run"]}
  assert found.sampling == RunConfig().sampling


def test_compare_says_where_its_rules_are_named(capsys):
  assert compare.main(["--preset", "quickstart", "--dry-run", "--advantage.name", "grpo"]) == 2
  assert "--advantage.name: the rules that are compared are said by --rules" in (
    capsys.readouterr().err
  )
