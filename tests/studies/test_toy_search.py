"""The toy of the searches: an oracle's regret by hand, and a whole run in miniature."""

import json

import numpy as np
import pytest

from experiments import search
from tea_jax.scaling import TwoLevelGaussian, scaling_law_search
from tea_jax.scaling.base import Schedule
from tea_jax.studies.toy_search import COMMITTING, commitment_regret, run_toy
from tea_jax.tail.gaussian import expected_maximum


def test_regret_is_the_oracles_value_minus_that_of_the_choice():
  source = TwoLevelGaussian(50, seed=0)
  found = scaling_law_search(source, 200, schedule=Schedule(20, 3))
  regret = commitment_regret(source, found, 200)
  for prompt in range(50):
    values = {0: np.sqrt(2) * expected_maximum(200)}
    for node in found.candidates[prompt, 1:]:
      values[int(node)] = source.states[prompt, node - 1] + expected_maximum(200)
    best = max(values.values())
    assert regret[prompt] == pytest.approx(best - values[int(found.focus[prompt])])


def test_regret_shrinks_where_pilots_grow_with_the_budget():
  found = run_toy((40, 400), num_problems=600)
  more_pilots = np.array(found["regret"]["scaling_law_search, m = N / 10, K = 4"])
  assert more_pilots[1, 0] + 3 * more_pilots[1, 1] < more_pilots[0, 0]
  means = np.array(found["regret"]["mean_guided_search"])[:, 0]
  assert means[1] < means[0]


def test_the_toy_writes_a_report(tmp_path, capsys):
  arguments = ["--preset", "toy", "--budgets", "30", "--num-problems", "50"]
  assert search.main([*arguments, "--dry-run"]) == 0
  assert "num_problems: 50" in capsys.readouterr().out
  assert search.main([*arguments, "--output", str(tmp_path), "--no-figures"]) == 0
  stored = json.loads((tmp_path / "toy.json").read_text())
  assert set(stored["regret"]) == set(COMMITTING)
  assert "branching_best_of_n" in (tmp_path / "report.md").read_text()
