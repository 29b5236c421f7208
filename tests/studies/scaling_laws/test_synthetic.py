"""The study of laws on known distributions, small."""

import json
import pathlib

import pytest

from tea_jax.studies.scaling_laws import report
from tea_jax.studies.scaling_laws.synthetic import SyntheticConfig, run_study

SMALL = SyntheticConfig(
  num_rollouts=(50,),
  budgets=(128, 10_000),
  trials=200,
  interval_trials=80,
  num_resamples=80,
  gradient_budgets=(128,),
  gradient_trials=32,
  pool_size=256,
)


@pytest.fixture(scope="module")
def study():
  return json.loads(json.dumps(run_study(SMALL)))


def find(study, kind, **wanted):
  (row,) = [r for r in study[kind] if all(r[k] == v for k, v in wanted.items())]
  return row


@pytest.mark.slow
def test_laws_are_right_on_their_own_family_and_wrong_the_expected_way_elsewhere(study):
  own = find(study, "laws", family="Gaussian", budget=128, law="gaussian_tail")
  assert abs(own["bias"]) < 0.15
  assert 0.35 < own["rmse"] < 0.60
  assert own["coverage"] > 0.85
  quantile = find(study, "laws", family="Gaussian", budget=128, law="gaussian_tail, quantile")
  assert quantile["bias"] < own["bias"] - 0.1
  assert quantile["coverage"] is None
  heavy = find(study, "laws", family="Student t5", budget=10_000, law="gaussian_tail")
  bounded = find(study, "laws", family="beta(2, 2)", budget=10_000, law="gaussian_tail")
  assert heavy["bias"] < -2
  assert bounded["bias"] > 0.3


@pytest.mark.slow
def test_influence_points_better_than_the_tail_shaped_reward(study):
  for family in ("Gaussian", "beta(2, 2)", "Gumbel"):
    tea = find(study, "gradients", family=family, estimator="tea")
    influence = find(study, "gradients", family=family, estimator="tail_influence")
    assert 0.5 < tea["cosine"] < influence["cosine"] <= 1.0


@pytest.mark.slow
def test_report_has_a_row_and_an_advice_for_each_family(study, tmp_path):
  pytest.importorskip("matplotlib")
  report.write_report(tmp_path, study, figures=True)
  families = {row["family"] for row in study["laws"]}
  assert len(report.advice(study)) == len(families)
  assert len(report.study_table(study).split("\n\n")[0].splitlines()) == 2 + len(families)
  assert json.loads((tmp_path / "results.json").read_text()) == study
  assert (tmp_path / "errors.png").stat().st_size > 10_000


def test_stored_report_is_made_of_the_stored_results():
  folder = pathlib.Path(__file__).parents[3] / "experiments" / "results" / "scaling_law_synthetic"
  study = json.loads((folder / "results.json").read_text())
  text = (folder / "report.md").read_text()
  assert report.study_table(study) in text
  assert all(sentence in text for sentence in report.advice(study))
