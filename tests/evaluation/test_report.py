"""Comparisons, figures and the report, from records with known differences."""

import dataclasses
import json

import numpy as np
import pytest

from tea_jax.evaluation.best_of_n import best_of_n_exact
from tea_jax.evaluation.comparison import Comparison, compare_runs
from tea_jax.evaluation.plots import line_styles
from tea_jax.evaluation.records import Records, Samples
from tea_jax.evaluation.report import write_report
from tea_jax.evaluation.report_tables import gain_table, markdown_table
from tea_jax.runs.presets import PRESETS

P, N = 12, 16
DIFFICULTY = np.random.default_rng(0).normal(scale=3.0, size=(P, 1))


def records(shift, seed, *, num_samples=N, reward="lexicon", prompts=P):
  rng = np.random.default_rng(seed)
  rewards = DIFFICULTY[:prompts] + shift + rng.normal(size=(prompts, num_samples))
  texts = [
    [f"completion {j} of *{i}* | x\nend" for j in range(num_samples)] for i in range(prompts)
  ]
  samples = Samples(
    texts, np.full((prompts, num_samples), 20), np.ones((prompts, num_samples), bool)
  )
  names = [f"prompt {i}" for i in range(prompts)]
  return Records(names, np.arange(prompts), samples, rewards, {"reward": reward})


@pytest.fixture(scope="module")
def runs():
  return {
    "base": [records(0.0, 1)],
    "grpo": [records(1.0, seed) for seed in (2, 3)],
    "tea": [records(2.0, seed) for seed in (4, 5)],
  }


def test_values_are_the_best_of_n_of_each_seed(runs):
  comparison = compare_runs(runs)
  assert comparison.budgets == [1, 2, 4, 8, 16]
  assert comparison.values["tea"].shape == (2, P, 5)
  np.testing.assert_allclose(comparison.values["tea"][1, :, -1], runs["tea"][1].rewards.max(axis=1))
  np.testing.assert_allclose(
    comparison.frontier("base").estimate[0], runs["base"][0].rewards.mean()
  )


def test_single_base_run_is_compared_with_every_seed(runs):
  comparison = compare_runs(runs)
  difference = comparison.difference("tea", "base")
  expected = np.mean([r.rewards.mean() for r in runs["tea"]]) - runs["base"][0].rewards.mean()
  np.testing.assert_allclose(difference.estimate[0], expected)
  assert (difference.low > 1.0).all()
  assert comparison.rates("tea", "base")[0].win == 1.0


def test_grouped_and_exact_agree_at_both_ends(runs):
  exact, grouped = compare_runs(runs), compare_runs(runs, method="grouped")
  for end in (0, -1):
    np.testing.assert_allclose(exact.values["tea"][..., end], grouped.values["tea"][..., end])


@pytest.mark.parametrize(
  "other, message",
  [
    (records(0.0, 1, num_samples=8), "8 completions"),
    (records(0.0, 1, reward="length"), "under one reward"),
    (records(0.0, 1, prompts=5), "other prompts"),
  ],
)
def test_records_that_cannot_be_paired_are_refused(runs, other, message):
  with pytest.raises(ValueError, match=message):
    compare_runs({**runs, "other": [other]})


def test_different_numbers_of_seeds_cannot_be_paired(runs):
  three = {**runs, "tea": [records(2.0, seed) for seed in (4, 5, 6)]}
  with pytest.raises(ValueError, match="same seeds"):
    compare_runs(three).difference("tea", "grpo")


def test_report_holds_tables_intervals_figures_and_samples(runs, tmp_path):
  pytest.importorskip("matplotlib")
  report = write_report(
    tmp_path,
    runs,
    baselines=("grpo", "base"),
    title="A comparison",
    settings={"model": "tiny|model"},
    notes=("A note.",),
  )
  text = report.read_text()
  for part in (
    "# A comparison",
    "tiny\\|model",
    "A note.",
    "**tea − grpo**: bo8",
    "(shown)",
    "![Best-of-N frontier](frontier.png)",
    "## Paired difference to base",
    "(grouped, as in the papers)",
    "(exactly Gaussian)",
    "completion 0 of \\*0\\* \\| x end",
  ):
    assert part in text
  results = json.loads((tmp_path / "results.json").read_text())
  estimate = results["difference"]["grpo"]["tea"]["estimate"]
  assert 0.5 < estimate[0] < 1.5
  assert f"{estimate[-1]:+.3f}" in text
  lines = (tmp_path / "per_prompt.csv").read_text().splitlines()
  assert len(lines) == 1 + P
  for name in ("frontier.png", "reward_distribution.png"):
    assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
  assert not list(tmp_path.glob(".*"))


def test_runs_are_shown_one_by_one_with_an_interval_over_them(runs, tmp_path):
  report = write_report(tmp_path, runs, baselines=("grpo", "base"), title="T", figures=False)
  found = json.loads((tmp_path / "results.json").read_text())
  by_seed = found["difference_by_seed"]["grpo"]["tea"]
  best = [
    np.mean(tea.rewards.max(axis=1) - grpo.rewards.max(axis=1))
    for tea, grpo in zip(runs["tea"], runs["grpo"], strict=True)
  ]
  np.testing.assert_allclose([run[-1] for run in by_seed["seeds"]], best)
  np.testing.assert_allclose(by_seed["estimate"], found["difference"]["grpo"]["tea"]["estimate"])
  text = report.read_text()
  assert f"| {best[1]:+.3f} |\n| tea, mean |" in text
  assert f"Over runs, bo16: [{by_seed['low'][-1]:+.3f}, {by_seed['high'][-1]:+.3f}]." in text
  assert "| base, 1 |" not in text
  pooled = {"base": runs["base"], "grpo": runs["grpo"]}
  text = write_report(tmp_path, pooled, baselines=("grpo",), title="T", figures=False).read_text()
  assert "Each run" not in text
  single = {name: group[:1] for name, group in runs.items()}
  text = write_report(tmp_path, single, baselines=("grpo",), title="T", figures=False).read_text()
  assert "Each run" not in text
  assert "Over runs" not in text


def test_report_without_figures_needs_no_matplotlib(runs, tmp_path, monkeypatch):
  import sys

  monkeypatch.setitem(sys.modules, "matplotlib", None)
  monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
  monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
  write_report(tmp_path, runs, baselines=("grpo",), title="T", figures=False)
  with pytest.raises(ImportError, match=r'pip install "tea-jax\[plots\]"'):
    write_report(tmp_path, runs, baselines=("grpo",), title="T")


def test_unknown_baseline_names_the_methods(runs, tmp_path):
  with pytest.raises(ValueError, match="'ppo' was not evaluated; there are base, grpo, tea"):
    write_report(tmp_path, runs, baselines=("ppo",), title="T")


def test_single_policy_is_reported_without_comparisons(runs, tmp_path):
  report = write_report(
    tmp_path, {"base": runs["base"]}, baselines=("base",), title="T", figures=False
  )
  assert "difference" not in report.read_text().split("## Method")[0]


def test_indistinguishable_methods_are_not_called_different(tmp_path):
  runs = {"grpo": [records(0.0, 1)], "tea": [records(0.0, 2)]}
  report = write_report(tmp_path, runs, baselines=("grpo",), title="T", figures=False)
  assert "(not shown)" in report.read_text()


def test_figures_survive_constant_rewards(tmp_path):
  pytest.importorskip("matplotlib")
  from tea_jax.evaluation.plots import qq_figure, reward_distribution_figure

  constant = {"base": np.zeros((3, 8)), "tea": np.ones((3, 8))}
  reward_distribution_figure(tmp_path / "d.png", constant)
  qq_figure(tmp_path / "q.png", constant)
  with pytest.raises(ValueError, match="at least one scored reward"):
    reward_distribution_figure(tmp_path / "d.png", {"base": np.full((2, 2), np.nan)})


def test_prompts_with_an_unscored_completion_are_left_out_of_every_method(runs, tmp_path):
  holed = {name: list(group) for name, group in runs.items()}
  rewards = runs["tea"][1].rewards.copy()
  rewards[3, 5] = np.nan
  holed["tea"][1] = dataclasses.replace(runs["tea"][1], rewards=rewards)
  report = write_report(tmp_path / "holed", holed, baselines=("grpo",), title="T", figures=False)
  assert "1 prompts are left out everywhere" in report.read_text()
  kept = np.arange(P) != 3
  without = {name: [r.select(kept) for r in group] for name, group in runs.items()}
  write_report(tmp_path / "without", without, baselines=("grpo",), title="T", figures=False)
  for file in ("results.json", "per_prompt.csv"):
    assert (tmp_path / "holed" / file).read_text() == (tmp_path / "without" / file).read_text()
  nothing = dataclasses.replace(runs["tea"][1], rewards=np.full((P, N), np.nan))
  with pytest.raises(ValueError, match="no prompt has a reward"):
    write_report(tmp_path, {"tea": [nothing]}, baselines=(), title="T", figures=False)


def test_budgets_that_do_not_divide_the_samples_have_the_exact_estimator_only(runs, tmp_path):
  arguments = {"baselines": ("grpo",), "title": "T", "figures": False}
  text = write_report(tmp_path, runs, budgets=(3, 5), **arguments).read_text()
  assert "grouped, as in the papers" not in text
  exact = compare_runs(runs, budgets=(3, 5)).frontier("tea").estimate
  assert f"| tea | {exact[0]:.3f} | {exact[1]:.3f} |" in text


def test_win_rates_are_given_for_both_estimators(runs, tmp_path):
  text = write_report(
    tmp_path, runs, baselines=("grpo",), title="T", figures=False, budgets=(1, 4, 16)
  ).read_text()
  grouped = compare_runs(runs, budgets=(1, 4, 16), method="grouped").rates("tea", "grpo")
  section = text[text.index("grouped, as in the papers") :]
  assert f"| tea | {grouped[0]} | {grouped[1]} | {grouped[2]} |" in section
  assert text.count("Win / tie / loss over prompts and seeds, % against grpo") == 2


def test_one_prompt_shows_nothing(tmp_path):
  runs = {"grpo": [records(1.0, 0, prompts=1)], "tea": [records(9.0, 1, prompts=1)]}
  text = write_report(tmp_path, runs, baselines=("grpo",), title="T", figures=False).read_text()
  assert "(not shown)" in text
  assert "(shown)" not in text


@pytest.mark.parametrize("name", PRESETS)
def test_every_method_of_a_preset_has_its_own_line(name):
  styles = line_styles(["base", *PRESETS[name].rules])
  assert len({tuple(style.values()) for style in styles.values()}) == len(PRESETS[name].rules) + 1


def test_markdown_table_has_a_rule_below_the_header():
  assert markdown_table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def test_a_gain_is_shift_and_widening():
  """Moved by 1: all shift. Twice as wide about the mean: all widening."""
  rng = np.random.default_rng(0)
  rewards = rng.normal(size=(1, P, N))
  rewards -= rewards.mean(axis=-1, keepdims=True)
  budgets = [1, 8]

  def values(array):
    return np.stack([best_of_n_exact(array[0], budgets)])

  found = Comparison(
    budgets,
    {"base": values(rewards), "moved": values(rewards + 1), "wide": values(2 * rewards)},
    {},
    [str(i) for i in range(P)],
    N,
    "exact",
  )
  shift, widening = found.shift_and_widening("moved", "base")
  np.testing.assert_allclose([shift.estimate, widening.estimate], [1, 0], atol=1e-12)
  shift, widening = found.shift_and_widening("wide", "base")
  gain = found.difference("wide", "base")[1].estimate
  np.testing.assert_allclose([shift.estimate, widening.estimate], [0, gain], atol=1e-12)
  assert "moved" in gain_table(found, "base")
  assert dataclasses.replace(found, budgets=[2, 8]).shift_and_widening("wide", "base") is None
