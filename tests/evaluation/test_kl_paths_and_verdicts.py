"""KL of runs and the sentences about a comparison, from made-up runs of known values."""

from __future__ import annotations

import numpy as np
import pytest

from tea_jax.evaluation.comparison import compare_runs
from tea_jax.evaluation.kl_paths import (
  final_kl,
  kl_path_figure,
  kl_table,
  largest_budget,
)
from tea_jax.evaluation.report import write_report
from tea_jax.evaluation.verdicts import verdicts
from tests.evaluation.test_report import records


def run(kl, *, steps=40, validate=0):
  lines = []
  for step in range(steps):
    line = {"step": step, "reward/mean": step / steps, "best_of_n/1": 1.0, "best_of_n/8": 2.0}
    line["kl"] = kl * min(1.0, 2 * step / steps)
    if validate and (step + 1) % validate == 0:
      line["validation/best_of_n/16"] = 3.0 + step
    lines.append(line)
  return lines


def test_final_kl_is_the_mean_of_the_last_quarter():
  assert final_kl([{"kl": float(step)} for step in range(8)]) == 6.5
  assert final_kl([{"kl": None}, {"step": 1}]) is None


def test_table_says_which_runs_are_at_the_target():
  table = kl_table({"near": [run(0.48), run(0.51)], "far": [run(0.7)]}, 0.5)
  near, far = table.splitlines()[2:]
  assert near == "| near | 0.495 | 0.480 0.510 | yes |"
  assert far == "| far | 0.700 | 0.700 | **no** |"
  assert kl_table({"unmeasured": [[{"step": 0}]]}) == ""


@pytest.mark.parametrize("kl, told", [(0.51, False), (0.7, True)])
def test_the_report_says_how_to_compare_runs_that_missed_the_target(tmp_path, kl, told):
  runs = {name: [records(0.0, seed)] for seed, name in enumerate("ab")}
  curves = {"a": [run(0.5)], "b": [run(kl)]}
  report = write_report(
    tmp_path, runs, baselines=("a",), title="T", figures=False, curves=curves, kl_target=0.5
  )
  assert ("--at-kl 0.5" in report.read_text()) == told


def test_largest_budget_is_that_of_the_logs():
  assert largest_budget({"a": [run(0.1)]}) == 8
  assert largest_budget({"a": [run(0.1)]}, "validation/best_of_n/") is None
  assert largest_budget({"a": [run(0.1, validate=10)]}, "validation/best_of_n/") == 16


@pytest.mark.parametrize("validate", [0, 10])
def test_path_is_drawn_with_and_without_validations(tmp_path, validate):
  pytest.importorskip("matplotlib")
  runs = {"grpo": [run(0.5, validate=validate)], "tea": [run(0.4, validate=validate)]}
  assert kl_path_figure(tmp_path / "kl.png", runs)
  assert (tmp_path / "kl.png").read_bytes().startswith(b"\x89PNG")
  without = {"grpo": [[{"step": 0, "reward/mean": 0.0, "best_of_n/8": 1.0}]]}
  assert not kl_path_figure(tmp_path / "none.png", without)


def test_verdict_says_higher_lower_or_not_shown():
  def verdict(shift, seeds):
    runs = {
      "grpo": [records(0.0, 10 + seed) for seed in range(seeds)],
      "tea": [records(shift, 20 + seed) for seed in range(seeds)],
    }
    (sentence,) = verdicts(compare_runs(runs), "grpo")
    return sentence

  assert " higher than that of grpo" in verdict(2.0, 1)
  assert " lower than that of grpo" in verdict(-2.0, 1)
  assert "One training run each" in verdict(2.0, 1)
  assert "3 of 3 pairs of training runs agree; they hold for other seeds" in verdict(2.0, 3)
  assert verdict(0.0, 1).startswith("No difference between tea and grpo is shown at best-of-16")


def test_verdict_of_one_prompt_judges_nothing():
  runs = {"grpo": [records(1.0, 0, prompts=1)], "tea": [records(9.0, 1, prompts=1)]}
  (sentence,) = verdicts(compare_runs(runs), "grpo")
  assert "can be judged" in sentence
  assert np.isfinite(float(sentence.split(": ")[1].split()[0]))
