"""Tables, figures and the stored result of a frontier."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tea_jax.evaluation.plots import line_styles, new_figure, save_figure
from tea_jax.evaluation.report_tables import markdown_table
from tea_jax.runs.config import from_dict, to_dict
from tea_jax.runtime.files import write_text
from tea_jax.studies.kl_frontier.frontier import Curve, FrontierConfig, WorldResult

Results = Mapping[str, WorldResult]

_SHOWN_KL = 2.0


def share_table(results: Results, config: FrontierConfig) -> str:
  """Share of the attainable gain in best-of-N, %, at each of the config's targets, by world."""
  header = ["rule", *results]
  rows = []
  for rule in _rules(results):
    shares = [[world.share(rule, kl) for kl in config.targets] for world in results.values()]
    rows.append([f"`{rule}`", *(" / ".join(map(_percent, row)) for row in shares)])
  return markdown_table(header, rows)


def noise_table(results: Results) -> str:
  """Groups that a step must average for a rule's gradient to equal its noise, at the base."""
  rows = [
    [f"`{rule}`", *(_groups(world.rules[rule].groups) for world in results.values())]
    for rule in _rules(results)
  ]
  return markdown_table(["rule", *results], rows)


def report_text(results: Results, config: FrontierConfig, command: str) -> str:
  """The whole report in Markdown."""
  targets = " / ".join(f"{kl:g}" for kl in config.targets)
  budget = config.budgets[-1]
  figures = [f"## {name}\n\n![{name}]({name}.png)" for name in results]
  return "\n\n".join(
    [
      "# Which rule is best at the same KL: exact worlds",
      f"`{command}`",
      f"Every rule trains a small policy to equilibrium (groups of {config.num_rollouts}), over a "
      "grid of KL coefficients; KL and best-of-N are computed exactly. The ceiling is the largest "
      f"best-of-{budget} that any policy of the world has at that KL.",
      f"## Share of the attainable gain in best-of-{budget}, %, at KL {targets}",
      share_table(results, config),
      "A dash: no coefficient of the grid leads there, or the equilibrium jumps across.",
      f"## Groups of {config.num_rollouts} a step until signal equals noise",
      noise_table(results),
      "At the base policy, in the metric of the Fisher matrix. A rule that needs more groups moves "
      "less, or less surely, in the same number of steps.",
      *figures,
    ]
  )


def write_frontier(
  folder: Path, results: Results, config: FrontierConfig, *, command: str, figures: bool = True
) -> None:
  """Writes report.md, results.json and, with figures, a PNG for each world."""
  folder.mkdir(parents=True, exist_ok=True)
  document = {
    "config": to_dict(config),
    "worlds": {name: _finite(dataclasses.asdict(world)) for name, world in results.items()},
  }
  write_text(folder / "results.json", json.dumps(document, indent=1) + "\n")
  if figures:
    for name, world in results.items():
      draw_world(folder / f"{name}.png", name, world, config.budgets)
  write_text(folder / "report.md", report_text(results, config, command) + "\n")


def load_frontier(path: Path) -> tuple[dict[str, WorldResult], FrontierConfig]:
  """Reads what `write_frontier` wrote into results.json."""
  document = json.loads(path.read_text())
  results = {
    name: WorldResult(
      base=world["base"],
      rules={rule: _curve(curve) for rule, curve in world["rules"].items()},
      ceiling=_curve(world["ceiling"]),
    )
    for name, world in document["worlds"].items()
  }
  return results, from_dict(FrontierConfig, document["config"], where=str(path))


def draw_world(path: Path, name: str, world: WorldResult, budgets: tuple[int, ...]) -> None:
  """Best-of-N against KL, a panel for each budget; every rule, and the ceiling of the last."""
  figure = new_figure(3.6 * len(budgets) + 2.2, 3.8)
  axes = figure.subplots(1, len(budgets), squeeze=False)[0]
  curves = {**world.rules, "ceiling": world.ceiling}
  styles = {**line_styles(world.rules), "ceiling": {"color": "black", "linestyle": ":"}}
  for k, (axis, budget) in enumerate(zip(axes, budgets)):
    for label, curve in curves.items():
      kl, values = _shown(curve, world.base)
      axis.plot(kl, values[:, k], **styles[label], linewidth=1.4, label=label)
    axis.set_title(f"best of {budget}" if budget > 1 else "mean")
    axis.set_xlabel("KL to the base, nats")
  axes[0].set_ylabel("reward, base standard deviations")
  figure.suptitle(name)
  figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
  save_figure(figure, path)


def _shown(curve: Curve, base: list[float]) -> tuple[np.ndarray, np.ndarray]:
  """KLs and values from the base up to `_SHOWN_KL`."""
  kl = np.concatenate([[0.0], curve.kl])
  values = np.concatenate([[base], curve.values])
  end = np.argmax(kl > _SHOWN_KL) if np.any(kl > _SHOWN_KL) else len(kl)
  return kl[:end], values[:end]


def _rules(results: Results) -> list[str]:
  return list(next(iter(results.values())).rules)


def _curve(stored: dict[str, Any]) -> Curve:
  return Curve(**{**stored, "groups": math.nan if stored["groups"] is None else stored["groups"]})


def _percent(share: float | None) -> str:
  return "–" if share is None else f"{100 * share:.0f}"


def _groups(groups: float) -> str:
  return f"{groups:.1f}" if groups < 100 else "> 100"


def _finite(value: Any) -> Any:
  """JSON has no NaN and no infinity."""
  if isinstance(value, dict):
    return {key: _finite(item) for key, item in value.items()}
  if isinstance(value, list):
    return [_finite(item) for item in value]
  return None if isinstance(value, float) and not math.isfinite(value) else value
