"""Laws on stored rewards: fitted to m rewards of a prompt, judged on the others."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from tea_jax.evaluation.best_of_n import best_of_n_exact
from tea_jax.evaluation.bootstrap import prompt_bootstrap
from tea_jax.evaluation.plots import line_styles, save_figure
from tea_jax.evaluation.report_tables import markdown_table
from tea_jax.runtime.figures import new_figure
from tea_jax.runtime.files import write_text
from tea_jax.scaling import predict_best_of_n, predict_with_shared_shape
from tea_jax.studies.scaling_laws.synthetic import LAWS as LAWS_OF_A_PROMPT

LAWS = (*LAWS_OF_A_PROMPT, "shared_shape")


@dataclasses.dataclass(frozen=True)
class MeasuredConfig:
  """How laws are judged on stored rewards.

  Attributes:
    num_fitted: m, rewards of a prompt that a law is fitted to.
    budgets: N; those that the held-out rewards reach.
    splits: random splits of a prompt's rewards into fitted and held out.
    tail_fraction: of the laws.
    extrapolate: N of the extrapolation from all rewards.
    seed: of the splits.
  """

  num_fitted: tuple[int, ...] = (20, 50, 100)
  budgets: tuple[int, ...] = (32, 64, 128, 256)
  splits: int = 20
  tail_fraction: float = 0.2
  extrapolate: tuple[int, ...] = (512, 1024, 4096)
  seed: int = 0


def predict(
  rewards: Float[np.ndarray, "*splits P m"], budgets: Sequence[int], law: str, tail_fraction: float
) -> Float[np.ndarray, "*splits P num_budgets"]:
  """Predictions of one of `LAWS`."""
  given = jnp.asarray(rewards)
  if law == "shared_shape":
    values = predict_with_shared_shape(given, budgets, tail_fraction=tail_fraction)
    return np.asarray(values, np.float64)
  options = LAWS_OF_A_PROMPT[law]
  values = predict_best_of_n(given, budgets, tail_fraction=tail_fraction, **options)
  return np.asarray(values, np.float64)


def prediction_errors(
  rewards: Float[np.ndarray, "P n"], config: MeasuredConfig
) -> list[dict[str, Any]]:
  """Errors of the laws in units of each prompt's standard deviation.

  A split fits to m rewards and compares with the exact best-of-N of the n - m others, whose own
  error is part of what is reported.

  Returns:
    Rows `num_fitted, budget, law, bias, rmse, relative, predicted, measured` and `per_prompt`, the
    mean error of each prompt; `relative` is the mean absolute error over the mean of the measured.
  """
  num_samples = rewards.shape[1]
  scale = rewards.std(axis=1, ddof=1)
  varied = scale > 0
  rewards, scale = rewards[varied], scale[varied]
  if not len(rewards):
    raise ValueError("every prompt has one reward only: there is no tail to predict")
  rows = []
  for m in config.num_fitted:
    budgets = [n for n in config.budgets if n <= num_samples - m]
    if not budgets:
      continue
    rng = np.random.default_rng([config.seed, m])
    shuffled = rng.permuted(np.repeat(rewards[None], config.splits, axis=0), axis=2)
    flat = shuffled[..., m:].reshape(-1, num_samples - m)
    measured = best_of_n_exact(flat, budgets).reshape(config.splits, len(rewards), -1)
    for law in LAWS:
      predicted = predict(shuffled[..., :m], budgets, law, config.tail_fraction)
      error = (predicted - measured) / scale[:, None]
      for b, budget in enumerate(budgets):
        rows.append(
          {
            "num_fitted": m,
            "budget": budget,
            "law": law,
            "bias": float(error[..., b].mean()),
            "rmse": float(np.sqrt(np.mean(error[..., b] ** 2))),
            "relative": float(
              np.abs(predicted - measured)[..., b].mean() / abs(measured[..., b].mean())
            ),
            "predicted": float(predicted[..., b].mean()),
            "measured": float(measured[..., b].mean()),
            "per_prompt": error[..., b].mean(axis=0).tolist(),
          }
        )
  if not rows:
    raise ValueError(
      f"{num_samples} rewards a prompt are too few: num_fitted={min(config.num_fitted)} leaves "
      f"{num_samples - min(config.num_fitted)} for best-of-{min(config.budgets)}"
    )
  return rows


def extrapolated(rewards: Float[np.ndarray, "P n"], config: MeasuredConfig) -> dict[str, Any]:
  """Best-of-N of all rewards where they reach, and each law's extrapolation beyond, by prompt."""
  num_samples = rewards.shape[1]
  inside = [2**k for k in range(num_samples.bit_length()) if 2**k <= num_samples]
  beyond = [n for n in config.extrapolate if n > num_samples]
  law_budgets = [*inside[2:], *beyond]
  laws = {law: predict(rewards, law_budgets, law, config.tail_fraction).tolist() for law in LAWS}
  return {
    "budgets": inside,
    "measured": best_of_n_exact(rewards, inside).tolist(),
    "law_budgets": law_budgets,
    "laws": laws,
  }


def measured_study(
  rewards: Mapping[str, Float[np.ndarray, "P n"]], config: MeasuredConfig
) -> dict[str, Any]:
  """JSON of both for each label."""
  with jax.default_device(jax.devices("cpu")[0]):
    return {
      "config": dataclasses.asdict(config),
      "records": {
        label: {
          "num_prompts": len(table),
          "num_samples": table.shape[1],
          "errors": prediction_errors(table, config),
          "curves": extrapolated(table, config),
        }
        for label, table in rewards.items()
      },
    }


def error_table(study: Mapping[str, Any]) -> str:
  """Markdown: bias and RMSE of each law over (m, N), in within-prompt standard deviations."""
  header = ["rewards", "m", "N", "measured", *LAWS]
  lines = []
  for label, record in study["records"].items():
    cells: dict[tuple[int, int], dict[str, Any]] = {}
    for row in record["errors"]:
      cells.setdefault((row["num_fitted"], row["budget"]), {})[row["law"]] = row
    for (m, budget), by_law in cells.items():
      best = min(by_law, key=lambda law: by_law[law]["rmse"])
      line = [label, str(m), str(budget), f"{by_law[best]['measured']:.3f}"]
      for law in LAWS:
        text = f"{by_law[law]['bias']:+.2f} / {by_law[law]['rmse']:.2f}"
        line.append(f"**{text}**" if law == best else text)
      lines.append(line)
  return markdown_table(header, lines)


def frontier_table(study: Mapping[str, Any]) -> str:
  """Markdown: best-of-N of all rewards, then the extrapolations, with intervals over prompts."""
  header = ["rewards", "N", "best-of-N [95 %]", "how"]
  lines = []
  for label, record in study["records"].items():
    curves = record["curves"]
    for column, budget in enumerate(curves["budgets"]):
      values = np.array(curves["measured"])[:, column]
      lines.append([label, str(budget), f"{prompt_bootstrap(values):.3f}", "measured"])
    for column, budget in enumerate(curves["law_budgets"]):
      if budget <= record["num_samples"]:
        continue
      for law in ("gaussian_tail", "shared_shape"):
        values = np.array(curves["laws"][law])[:, column]
        lines.append([label, str(budget), f"{prompt_bootstrap(values):.3f}", law])
  return markdown_table(header, lines)


def write_report(
  folder: str | pathlib.Path,
  study: Mapping[str, Any],
  *,
  figures: bool = True,
  sections: Sequence[str] = (),
) -> pathlib.Path:
  """Writes results.json, report.md and prediction.png; returns the report's path."""
  path = pathlib.Path(folder)
  path.mkdir(parents=True, exist_ok=True)
  write_text(path / "results.json", json.dumps(study, indent=1) + "\n")
  parts = ["# Best-of-N: measured and predicted", frontier_table(study), *sections]
  parts += [
    "## Errors of prediction",
    "Bias / RMSE in within-prompt standard deviations; the best law of a row is bold.",
    error_table(study),
  ]
  if figures:
    draw(path / "prediction.png", study)
    parts.append("![Measured and predicted best-of-N](prediction.png)")
  write_text(path / "report.md", "\n\n".join(parts) + "\n")
  return path / "report.md"


def draw(path: pathlib.Path, study: Mapping[str, Any]) -> None:
  """Measured curves with their intervals, and what each law makes of them."""
  records = study["records"]
  figure = new_figure(5.2 * len(records), 4.2)
  axes = figure.subplots(1, len(records), squeeze=False)[0]
  styles = line_styles(LAWS)
  for axis, (label, record) in zip(axes, records.items(), strict=True):
    curves = record["curves"]
    interval = prompt_bootstrap(np.array(curves["measured"]))
    axis.plot(curves["budgets"], interval.estimate, "ko-", markersize=3.5, label="measured")
    axis.fill_between(
      curves["budgets"], interval.low, interval.high, color="black", alpha=0.12, linewidth=0
    )
    for law, values in curves["laws"].items():
      axis.plot(curves["law_budgets"], np.mean(values, axis=0), **styles[law], label=law)
    axis.set_xscale("log", base=2)
    axis.set_xlabel("N")
    axis.set_ylabel("reward of the best of N")
    axis.set_title(label)
    axis.legend(frameon=False, fontsize=8)
  save_figure(figure, path)
