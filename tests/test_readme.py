"""Commands in README and results parse, examples run, files exist, tables say what was stored."""

import csv
import importlib
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest

from tea_jax.evaluation.bootstrap import seed_interval

ROOT = pathlib.Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
STORED = ROOT / "experiments/results"
RESULTS = (STORED / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", TEXT + RESULTS, re.S)
PYTHON = [code for language, code in BLOCKS if language == "python"]
# These need a model; their imports are checked, and the rooms' own tests run what they call.
NEEDS_A_MODEL = ("load_policy(", "train(RunConfig", "best_of_n_frontier", "def short_and_polite")
COMMANDS = dict.fromkeys(
  part.strip().split("  #")[0]
  for language, code in BLOCKS
  if language in ("", "bash")
  for line in code.splitlines()
  for part in line.split("&&")
  if re.match(r"\s*python (-m experiments\.|experiments/)", part)
)


def test_readme_names_both_setup_commands():
  assert 'pip install -e ".[test]" && pytest' in TEXT
  assert "python -m experiments.compare --preset quickstart" in TEXT


@pytest.mark.parametrize("index", range(len(PYTHON)))
def test_examples_import_what_exists(index):
  for line in PYTHON[index].splitlines():
    if re.match(r"(from \S+ )?import ", line):
      exec(line, {})


@pytest.mark.parametrize(
  "code", [code for code in PYTHON if not any(word in code for word in NEEDS_A_MODEL)]
)
def test_examples_run(code):
  exec(code, {})


def test_evaluation_example_runs():
  (code,) = [code for code in PYTHON if "best_of_n_frontier" in code]
  rewards = np.random.default_rng(0).normal(size=(3, 4, 128))
  exec(code, {"rewards": rewards[0], "a": rewards[1], "b": rewards[2]})


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_of_a_command_exists(command):
  words = shlex.split(command)[1:]
  words = words[1:] if words[0] == "-m" else words
  name, *arguments = words
  name = name.removesuffix(".py").replace("/", ".")
  if name in ("experiments.train", "experiments.compare") and "--config" not in arguments:
    importlib.import_module(name).parse(arguments)
    return
  environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
  shown = subprocess.run(
    [sys.executable, "-m", name, "--help"],
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
    check=True,
  ).stdout.replace("_", "-")
  for argument in arguments:
    if argument.startswith("--"):
      assert argument in shown, f"{name} has no flag {argument}"


@pytest.mark.parametrize("folder, text", [(ROOT, TEXT), (STORED, RESULTS)])
def test_linked_files_and_sections_exist(folder, text):
  links = re.findall(r"\]\(([^)\s]+)\)", text)
  assert any(link.endswith(".png") for link in links)
  for link in links:
    if link.startswith("http"):
      continue
    name, _, section = link.partition("#")
    target = folder / name if name else None
    assert target is None or target.exists(), link
    if section:
      headings = re.findall(r"^#+ (.*)$", target.read_text() if target else text, re.M)
      slugs = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
      assert section in slugs, link


def stored(name):
  return json.loads((STORED / f"{name}.json").read_text())


def one_line(text):
  return " ".join(text.split())


def at_budgets(results, values):
  """The columns of the tables: best of 1, 8, 64 and 128."""
  return np.asarray(values)[..., [results["budgets"].index(n) for n in (1, 8, 64, 128)]]


def says(pattern, expected, text=None):
  """The numbers with two decimals in the first group of the pattern are the expected ones."""
  said = re.search(pattern, text or TEXT)
  assert said
  numbers = [float(found) for found in re.findall(r"[-+]?\d+\.\d\d", said[1])]
  np.testing.assert_allclose(numbers, np.ravel(expected), atol=0.005001)


def intervals(results, paired):
  """Estimate, low and high at each of those budgets."""
  return np.transpose([at_budgets(results, paired[key]) for key in ("estimate", "low", "high")])


def paired_at_128(results, baseline, policy):
  return intervals(results, results["difference"][baseline][policy])[-1]


def pairs_of_runs(names, policy):
  """`policy` - grpo at each of those budgets, a row for each pair of runs of the stored results."""
  runs = []
  for name in names:
    results = stored(f"quickstart-3seeds/{name}")
    runs += list(at_budgets(results, results["difference_by_seed"]["grpo"][policy]["seeds"]))
  return np.asarray(runs)


def over_runs(columns):
  """Estimate, low and high of each column's mean over runs."""
  mean = seed_interval(columns)
  return np.column_stack([mean.estimate, mean.low, mean.high])


HALF = "tea:tail_fraction=0.5"
HALF_SECTION = RESULTS.split("### Half of a group as the tail")[1].split("### Without a penalty")[0]


def test_quickstart_figures_are_the_stored_runs():
  table = TEXT.split("| policy | best of 1 |")[1].split("TEA has the better")[0]
  results = stored("quickstart/results")
  for policy in ("base", HALF, "grpo"):
    expected = at_budgets(results, results["frontier"][policy]["estimate"])
    says(rf"\| {policy} ((?:\| [\d.]+ ){{4}})", expected, table)
  says(r"\| ([^|]+\[.*\]) \|", paired_at_128(results, "grpo", HALF), table)
  says(
    r"best of 64 \((.*)\); its interval", intervals(results, results["difference"]["grpo"][HALF])[2]
  )
  for name, tea in (
    ("older_cores", HALF),
    ("quarter_tail", "tea"),
    ("quarter_tail_faster_cores", "tea"),
  ):
    other = stored(f"quickstart/{name}")["frontier"]
    ends = [at_budgets(results, other[policy]["estimate"])[[0, -1]] for policy in (tea, "grpo")]
    says(rf"\[([^\]]*)\]\(experiments/results/quickstart/{name}.json\)", ends)
  six = stored("quickstart-3seeds/half_tail_six_seeds")
  paired = intervals(six, six["difference_by_seed"]["grpo"][HALF])
  said = TEXT.split("TEA is ahead by\n")[1].split("(interval over runs)")[0]
  says(r"(\S+ \[.*?\]) at 1 ", paired[0], said)
  says(r"and (\S+ \[.*?\]) at 128", paired[-1], said)


def test_claim_follows_from_the_stored_runs():
  columns = pairs_of_runs(("six_seeds", "two_cores"), "tea")
  columns = np.column_stack([columns, columns[:, -1] - columns[:, 0]])
  assert columns.shape == (9, 5)
  expected = over_runs(columns)
  says(r"\| mean of the nine \|(.*)", expected, RESULTS)
  says(r"ahead by less \(best of 128 (.*?) over nine pairs", expected[3], one_line(TEXT))


def test_tail_fractions_are_the_stored_runs():
  results = stored("quickstart-3seeds/tail_fractions")
  for shown, policy in (("1/8", "tea_0.125"), ("1/2", "tea_0.5")):
    expected = at_budgets(results, results["frontier"][policy]["estimate"])
    says(rf"\| {shown} \|(.*)\|.*\|", expected, RESULTS)
  paired = paired_at_128(results, "tea_0.125", "tea_0.5")
  says(r"difference at 128 is (.*) over prompts", paired, RESULTS)
  with open(STORED / "quickstart-3seeds/per_prompt.csv") as file:
    rows = list(csv.DictReader(file))[: results["num_prompts"]]
  expected = [np.mean([float(row[f"{rule} bo128"]) for row in rows]) for rule in ("grpo", "tea")]
  says(r"H200 runs gave (.*\(grpo\) and .*\(tea, 1/4\))", expected, RESULTS)


def test_half_tail_against_grpo_is_the_stored_runs():
  results = stored("quickstart-3seeds/half_tail_six_seeds")
  assert results["seeds"][HALF] == results["seeds"]["grpo"] == [3, 4, 5, 6, 7, 8]
  for shown, policy in (
    ("grpo", "grpo"),
    ("tea, tail fraction 1/2", HALF),
    ("grpo, coefficient 1.4", "grpo, KL coefficient 1.4"),
    ("tea, tail fraction 1/2, coefficient 1.4", f"{HALF}, KL coefficient 1.4"),
    ("grpo, coefficient 1", "grpo, KL coefficient 1"),
  ):
    expected = at_budgets(results, results["frontier"][policy]["estimate"])
    kl = np.mean(results["kl_last_10_steps"][policy])
    says(rf"\| {shown} \|(.*)", [*expected, kl], HALF_SECTION)
  by_seed = results["difference_by_seed"]
  seeds = at_budgets(results, by_seed["grpo"][HALF]["seeds"])
  assert (seeds[:, 1:] > 0).all()
  says(r"tea - grpo by seed \|(.*)", seeds.T, HALF_SECTION)
  paired = intervals(results, by_seed["grpo"][HALF])
  assert (paired[2:, 1] > 0).all()
  says(r"tea - grpo, interval over runs \|(.*)", paired, HALF_SECTION)
  both = by_seed["grpo, KL coefficient 1.4"][f"{HALF}, KL coefficient 1.4"]
  says(r"both with coefficient 1.4 \|(.*)", intervals(results, both), HALF_SECTION)
  claimed = TEXT.split("yes at the same coefficient")[1].split("over six pairs")[0]
  for budget, index in (("64", 2), ("128", 3)):
    says(rf"best of {budget}\s(\S+ \[.*?\])", paired[index], claimed)


def test_half_tail_at_the_same_kl_follows_from_the_stored_runs():
  results = stored("quickstart-3seeds/half_tail_six_seeds")
  kl, by_seed = results["kl_last_10_steps"], results["difference_by_seed"]["grpo"]
  weaker = ("grpo, KL coefficient 1.4", "grpo, KL coefficient 1")
  ahead = []
  for seed, tea in enumerate(at_budgets(results, by_seed[HALF]["seeds"])):
    gains = [at_budgets(results, by_seed[policy]["seeds"][seed]) for policy in weaker]
    gains = np.array([np.zeros(4), *gains])
    spent = np.log([kl[policy][seed] for policy in ("grpo", *weaker)])
    by_tea = np.log(kl[HALF][seed])
    assert (np.diff(spent) > 0).all()
    assert spent[0] < by_tea < spent[-1]
    ahead.append([t - np.interp(by_tea, spent, g) for t, g in zip(tea, gains.T)])
  says(r"tea - grpo at the same KL \|(.*)", over_runs(np.array(ahead)), HALF_SECTION)


@pytest.mark.parametrize(
  "where, name",
  [("On two older cores", "half_tail"), ("On two newer cores", "half_tail_newer_cores")],
)
def test_half_tail_on_two_cores_is_the_stored_runs(where, name):
  results = stored(f"quickstart-3seeds/{name}")
  assert results["seeds"][HALF] == results["seeds"]["grpo"] == [0, 1, 2]
  text = one_line(HALF_SECTION.split(f"{where}, seeds 0 to 2")[1])
  over_prompts = intervals(results, results["difference"]["grpo"][HALF])
  by_seed = results["difference_by_seed"]["grpo"][HALF]
  seeds, runs = at_budgets(results, by_seed["seeds"]), intervals(results, by_seed)
  expected = [[*seeds[:, n], *over_prompts[n], *runs[n]] for n in (2, 3)]
  says(r"at 64 was (.*? over runs and at 128 .*?) over runs", expected, text)


def test_half_tail_over_all_pairs_follows_from_the_stored_runs():
  pairs = pairs_of_runs(("half_tail_six_seeds", "half_tail", "half_tail_newer_cores"), HALF)
  assert pairs.shape == (12, 4)
  expected = over_runs(pairs)[[0, 2, 3]]
  says(r"all twelve pairs of runs .*? tail: (.*?) at 128 \(", expected, one_line(HALF_SECTION))
  summary = one_line(TEXT.split("once more on two cores")[1])
  newer = stored("quickstart-3seeds/half_tail_newer_cores")
  newer = intervals(newer, newer["difference"]["grpo"][HALF])[2:]
  says(r"show it (.*?) all twelve", newer, summary)
  says(r"all twelve pairs of runs together give (.*?) at 128", expected[-1], summary)


def test_other_rules_with_half_a_group_are_the_stored_runs():
  results = stored("quickstart-3seeds/half_tail_other_rules")
  table = HALF_SECTION.split("The other tail rules")[1]
  assert set(map(tuple, results["seeds"].values())) == {(0, 1, 2)}
  for rule in ("tea", "subset_tea", "tail_influence"):
    policy = f"{rule}:tail_fraction=0.5"
    expected = at_budgets(results, results["frontier"][policy]["estimate"])
    kl = np.mean(results["kl_last_10_steps"][policy])
    says(rf"\| {rule} \|(.*)", [*expected, kl], table)
    if policy == HALF:
      continue
    by_seed = results["difference_by_seed"][HALF][policy]
    says(rf"{rule} - tea by seed \|(.*)", at_budgets(results, by_seed["seeds"]).T, table)
    over_prompts = intervals(results, results["difference"][HALF][policy])
    says(rf"{rule} - tea, interval over prompts \|(.*)", over_prompts, table)
    says(rf"{rule} - tea, interval over runs \|(.*)", intervals(results, by_seed), table)


@pytest.mark.parametrize("text, every_rule", [(TEXT, False), (RESULTS, True)])
def test_alignment_table_is_the_stored_study(text, every_rule):
  table = text.split("--preset quickstart --num-seeds 5 --memory-gb 9")[1].split("\n\n")[1]
  rows = [[cell.strip(" *") for cell in line.split("|")[1:-1]] for line in table.splitlines()]
  said = {row[0]: row[1:] for row in rows}
  with open(STORED / "oracle_alignment_smollm2/alignment.csv") as file:
    cells = list(csv.reader(file))[1:]
  measured = {rule for _, _, rule, *_ in cells}
  assert {"grpo", "tea"} < said.keys() - {"rule", "---", "published"} <= measured
  assert measured <= said.keys() or not every_rule
  for _, size, rule, mean, error, _ in cells:
    if rule in said:
      cell = said[rule][(8, 16, 32, 64, 128, 256).index(int(size))]
      numbers = [float(number) for number in re.findall(r"-?\d\.\d{3}", cell)]
      np.testing.assert_allclose(numbers, [float(mean), float(error)], atol=0.000501)
