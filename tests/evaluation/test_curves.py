import json

import numpy as np
import pytest

from tea_jax.evaluation import curves

pytest.importorskip("matplotlib")


def lines(seed, steps=6, **more):
  values = np.random.default_rng(seed).normal(size=steps)
  return [
    {"step": s, "reward/mean": v, "best_of_n/1": v, "best_of_n/8": v + 2, "entropy": 1.0, **more}
    for s, v in enumerate(values)
  ]


@pytest.fixture
def drawn(monkeypatch):
  """The figures that are saved, instead of files."""
  figures = []
  monkeypatch.setattr(curves, "save_figure", lambda figure, path: figures.append(figure))
  return figures


def plotted(axis):
  return [np.asarray(line.get_ydata()) for line in axis.get_lines()]


def test_panels_are_those_that_the_runs_have(drawn):
  curves.curves_figure("x.png", {"tea": [lines(0)], "grpo": [lines(1, kl=0.5)]})
  titles = [axis.get_title() for axis in drawn[0].axes]
  assert titles == [
    "reward",
    "best of N",
    "KL to the base, nats a completion",
    "entropy, nats a token",
  ]
  kl = plotted(drawn[0].axes[2])
  np.testing.assert_array_equal(kl, [np.full(6, 0.5)])


def test_seeds_are_averaged_where_all_of_them_are(drawn):
  first, second = lines(0, steps=6), lines(1, steps=4)
  curves.curves_figure("x.png", {"tea": [first, second]})
  *seeds, mean = plotted(drawn[0].axes[0])
  assert [len(seed) for seed in seeds] == [6, 4]
  expected = [(a["reward/mean"] + b["reward/mean"]) / 2 for a, b in zip(first, second)]
  np.testing.assert_allclose(mean, expected)


def test_best_of_n_is_the_largest_that_is_measured(drawn):
  run = lines(0, predicted_best_of_budget=3.0)
  curves.curves_figure("x.png", {"tea": [run]})
  predicted, measured = plotted(drawn[0].axes[1])
  np.testing.assert_array_equal(predicted, np.full(6, 3.0))
  np.testing.assert_allclose(measured, [line["best_of_n/8"] for line in run])


def test_steps_without_a_value_are_left_out(drawn):
  run = lines(0)
  run[2]["reward/mean"] = None
  curves.curves_figure("x.png", {"tea": [run]})
  assert len(plotted(drawn[0].axes[0])[0]) == 5


def test_a_run_folder_gets_its_picture(tmp_path):
  metrics = "".join(json.dumps(line) + "\n" for line in lines(0))
  (tmp_path / "metrics.jsonl").write_text(metrics)
  assert curves.draw_curves(tmp_path).read_bytes().startswith(b"\x89PNG")
