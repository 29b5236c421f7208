"""`experiments.scaling_law` on reward files of another engine."""

import json

import numpy as np
import pytest

from experiments import scaling_law

pytest.importorskip("matplotlib")


@pytest.fixture
def files(tmp_path):
  """Gaussian prompts of different location and scale; `tuned` is 1 better."""
  rng = np.random.default_rng(0)
  loc, scale = rng.normal(size=8), np.exp(0.3 * rng.normal(size=8))
  for name, shift in (("base", 0.0), ("tuned", 1.0)):
    rows = [
      {"prompt": f"p{p}", "reward": shift + loc[p] + scale[p] * rng.normal()}
      for p in range(8)
      for _ in range(120)
    ]
    (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  return tmp_path


def test_files_give_frontier_errors_and_paired_difference(files, capsys):
  arguments = [f"base={files}/base.jsonl", f"tuned={files}/tuned.jsonl", "--output", f"{files}/out"]
  arguments += ["--measured.num-fitted", "40", "--measured.budgets", "64", "--measured.splits", "4"]
  assert scaling_law.main(arguments) == 0
  results = json.loads((files / "out" / "results.json").read_text())
  errors = {row["law"]: row for row in results["records"]["base"]["errors"]}
  assert errors["shared_shape"]["rmse"] < errors["gaussian_tail"]["rmse"] < 0.8
  curves = results["records"]["tuned"]["curves"]
  assert curves["budgets"] == [1, 2, 4, 8, 16, 32, 64]
  assert curves["law_budgets"][-3:] == [512, 1024, 4096]
  text = (files / "out" / "report.md").read_text()
  assert "## Paired difference to base" in text
  assert (files / "out" / "prediction.png").stat().st_size > 10_000


def test_too_few_rewards_are_one_clear_line(files, capsys):
  assert scaling_law.main([f"{files}/base.jsonl", "--measured.num-fitted", "100"]) == 2
  assert "120 rewards a prompt are too few" in capsys.readouterr().err


def test_nothing_to_do_is_one_clear_line(capsys):
  assert scaling_law.main([]) == 2
  assert "name records or reward files, or --synthetic" in capsys.readouterr().err
