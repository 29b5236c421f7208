"""Searches side by side on a pool whose rewards are known."""

import json

import numpy as np
import pytest

from tea_jax.scaling.generators import Completion
from tea_jax.scaling.rollout_pool import RolloutPool
from tea_jax.studies.searches import run_searches, summary_table, write_study


class Digits:
  """Answers of four digits; the first, the state, is worth ten times the others."""

  group_size = 8

  def __call__(self, requests):
    return [self.group(request) for request in requests]

  def group(self, request):
    rng = np.random.default_rng([request.prompt, request.node, request.group])
    rows = []
    for _ in range(8):
      digits = [*request.prefix, *map(str, rng.integers(0, 10, 4 - len(request.prefix)))]
      rows.append(Completion("".join(digits), tuple(digits), True))
    return rows


def score(prompts, texts):
  return [10.0 * int(text[0]) + sum(map(int, text[1:])) for text in texts]


@pytest.fixture(scope="module")
def study():
  pool = RolloutPool(Digits(), score, 12, state_length=1)
  return run_searches(
    pool,
    ["scaling_law_search", "mean_guided_search"],
    [40, 120],
    correct=lambda prompts, texts: np.array([int(text) > 9990 for text in texts]),
  )


def rows(study, method):
  return {row["budget"]: row for row in study["rows"] if row["method"] == method}


def test_search_finds_better_answers_and_is_cheaper(study):
  plain, search = rows(study, "best_of_n"), rows(study, "scaling_law_search")
  assert np.mean(search[120]["reward"]) > np.mean(plain[120]["reward"]) + 1
  assert np.mean(search[120]["tokens"]) < np.mean(plain[120]["tokens"]) == 480
  assert search[120]["on_state"] > 0.5
  # At fewer rollouts best-of-N is worse.
  assert np.nanmean(search[120]["equal_tokens"]) < np.mean(plain[120]["reward"])


def test_best_of_n_at_its_own_tokens_is_itself(study):
  plain = rows(study, "best_of_n")[120]
  np.testing.assert_allclose(plain["equal_tokens"], plain["reward"])


def test_selected_and_any_right_answers_are_counted(study):
  for row in study["rows"]:
    right, any_right = np.array(row["right"]), np.array(row["any_right"])
    assert not (right & ~any_right).any()
  assert np.mean(rows(study, "scaling_law_search")[120]["any_right"]) > 0.3


def test_report_tells_rewards_differences_and_costs(study, tmp_path):
  pytest.importorskip("matplotlib")
  report = write_study(tmp_path, study | {"prompts": ["a"] * 4}, title="Searches")
  text = report.read_text()
  assert summary_table(study) in text
  assert "rm@1" in text
  assert json.loads((tmp_path / "results.json").read_text())["rows"] == study["rows"]
  assert (tmp_path / "search.png").stat().st_size > 10_000


def test_unknown_methods_are_refused():
  with pytest.raises(ValueError, match=r"unknown methods \['beam'\]"):
    run_searches(RolloutPool(Digits(), score, 1, state_length=1), ["beam"], [8])
