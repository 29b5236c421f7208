"""The protein experiments: a base model, then matched runs of advantage rules, then the tables.

The mean of the reward is highest in the soluble mode, the best of many samples in the membrane
mode: which one a rule finds shows what it optimises.

Source: arXiv 2604.24957, appendices L and M, Table 6, Figure 6.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tea_jax.data import Prompt
from tea_jax.data.supervised import Pair, make_pairs
from tea_jax.evaluation.best_of_n import best_of_n_exact
from tea_jax.evaluation.bootstrap import seed_interval
from tea_jax.evaluation.plots import line_styles, new_figure, save_figure
from tea_jax.evaluation.records import Records
from tea_jax.evaluation.report_tables import markdown_table
from tea_jax.models.policy import Policy
from tea_jax.models.weights.load import load_policy
from tea_jax.rewards.proteins import clean_sequence, hydrophobicity
from tea_jax.runs.presets import Preset
from tea_jax.runs.supervised import SupervisedConfig
from tea_jax.runtime.files import write_text
from tea_jax.studies.compute_aligned import proteins, published
from tea_jax.studies.matched_runs import BASE, MatchedRuns, moved, train_matched
from tea_jax.training.supervised import train_supervised

BUDGETS = (1, 2, 4, 8, 16, 32, 64)
_BINS = np.linspace(0, 1, 26)


@dataclasses.dataclass(frozen=True)
class ProteinExperiment:
  """One protein experiment.

  Attributes:
    preset: rules, seeds and the config of their runs.
    warm_up: how the base model is trained where there is none of that name; None for a model that
      exists, such as ProtGPT2.
    conditional: whether the base model also learns the gold pairs, in `second_warm_up`, and the
      prompts are input sequences.
    second_warm_up: the run on the gold pairs.
  """

  preset: Preset
  warm_up: SupervisedConfig | None
  conditional: bool = False
  second_warm_up: SupervisedConfig | None = None

  def with_preset(self, preset: Preset) -> ProteinExperiment:
    """The experiment with another preset; its warm-ups move along into the preset's folder."""
    first, second = (
      run and moved(run, self.preset, preset) for run in (self.warm_up, self.second_warm_up)
    )
    return dataclasses.replace(self, preset=preset, warm_up=first, second_warm_up=second)


def run_proteins(
  experiment: ProteinExperiment, *, say: Callable[[str], None] = print
) -> dict[str, Any]:
  """Trains the base model and every rule with every seed, and writes the report.

  Returns:
    What `proteins.json` holds, see `summarize`.
  """
  preset = experiment.preset
  folder = pathlib.Path(preset.config.run_folder)
  policy = base_policy(experiment, say=say)
  runs = train_matched(preset, policy=policy, splits=splits(experiment), say=say)
  found = summarize(runs)
  write_report(folder, found, experiment)
  return found


def base_policy(experiment: ProteinExperiment, *, say: Callable[[str], None] = print) -> Policy:
  """The policy that every rule starts from; trained here where it does not exist."""
  model = experiment.preset.config.model
  options = {"remat": model.remat, "scan_layers": model.scan_layers}
  if experiment.warm_up is None:
    policy = load_policy(model.name, compute_dtype=model.compute_dtype, **options)
  else:
    say("training the base model on natural sequences")
    start = dataclasses.replace(proteins.protein_policy(), **options)
    pairs = proteins.natural_pairs()
    held_out = {"train": pairs[512:], "validation": pairs[:512]}
    policy = train_supervised(experiment.warm_up, policy=start, splits=held_out).policy
  if experiment.second_warm_up is not None:
    say("training the base model on gold pairs")
    policy = train_supervised(
      experiment.second_warm_up, policy=policy, splits={"train": gold_pairs()}
    ).policy
  return policy


def gold_pairs(count: int = 2000) -> list[Pair]:
  """The pairs of the conditional warm-up."""
  return make_pairs(_prompts(count, seed=0), target="completion")


def splits(experiment: ProteinExperiment) -> dict[str, list[Prompt]]:
  """Prompts of training and evaluation: the start token, or input sequences."""
  if not experiment.conditional:
    text = experiment.preset.config.data.prompts
    prompt = proteins.start_prompt() if text == "start" else proteins.make_prompt(text)
    return {"train": [prompt], "test": [prompt], "validation": []}
  return {"train": _prompts(512, seed=1), "test": _prompts(64, seed=2), "validation": []}


def _prompts(count: int, *, seed: int) -> list[Prompt]:
  rows = proteins.complement_rows(count, seed=seed)
  return [proteins.make_prompt(row.pop("prompt"), row) for row in rows]


def summarize(runs: MatchedRuns) -> dict[str, Any]:
  """Best-of-N of every run, its KL, and its histogram of hydrophobic shares; JSON.

  Returns:
    `best_of_n` (method -> seeds x budgets), `kl` (rule -> seeds, nats a completion over the last
    ten steps), `histogram` (method -> share of samples in each bin, seeds pooled), `bins`,
    `budgets`, `minus_first` (rule -> budget -> mean, low, high of the paired difference to the
    first rule).
  """
  values = {
    name: np.stack([best_of_n_exact(r.rewards, BUDGETS).mean(0) for r in group])
    for name, group in runs.records.items()
  }
  first = runs.preset.rules[0]
  minus_first = {}
  for rule in runs.preset.rules[1:]:
    found = seed_interval(values[rule] - values[first])
    minus_first[rule] = {
      str(budget): [float(x[i]) for x in (found.estimate, found.low, found.high)]
      for i, budget in enumerate(BUDGETS)
    }
  kl = {
    rule: [float(np.mean([line["kl"] for line in lines[-10:] if "kl" in line])) for lines in seeds]
    for rule, seeds in runs.metrics.items()
  }
  return {
    "budgets": list(BUDGETS),
    "best_of_n": {name: array.tolist() for name, array in values.items()},
    "minus_first": minus_first,
    "kl": kl,
    "bins": _BINS.tolist(),
    "histogram": {name: _histogram(group).tolist() for name, group in runs.records.items()},
    "seeds": list(runs.preset.seeds),
  }


def _histogram(group: Sequence[Records]) -> np.ndarray:
  sequences = [clean_sequence(text) for r in group for row in r.samples.completions for text in row]
  shares = [hydrophobicity(s) for s in sequences if s]
  return np.histogram(shares, bins=_BINS)[0] / max(len(shares), 1)


def write_report(
  folder: pathlib.Path, found: Mapping[str, Any], experiment: ProteinExperiment
) -> pathlib.Path:
  """Writes `proteins.json`, `report.md` and, where matplotlib is, `proteins.png`."""
  folder.mkdir(parents=True, exist_ok=True)
  write_text(folder / "proteins.json", json.dumps(found, indent=1) + "\n")
  write_text(folder / "report.md", _report(found, experiment))
  try:
    _draw(folder / "proteins.png", found)
  except ImportError as error:
    print(f"no figure: {error}")
  return folder / "report.md"


def _report(found: Mapping[str, Any], experiment: ProteinExperiment) -> str:
  preset = experiment.preset
  table = published.PROTEIN_COMPLEMENT if experiment.conditional else published.PROTEIN_VALLEY
  rows = []
  for name, seeds in found["best_of_n"].items():
    means = np.mean(seeds, axis=0)
    kl = "0" if name == BASE else f"{np.mean(found['kl'][name]):.2f}"
    rows.append([name, *(f"{value:.2f}" for value in means), kl])
  for name, curve in table.items():
    cells = (f"{curve[n]:.2f}" if n in curve else "" for n in BUDGETS)
    rows.append([f"published: {name}", *cells, ""])
  several = len(preset.seeds) > 1

  def difference(mean: float, low: float, high: float) -> str:
    return f"{mean:+.2f}" + (f" [{low:+.2f}, {high:+.2f}]" if several else "")

  differences = [
    [rule, *(difference(*cell) for cell in cells.values())]
    for rule, cells in found["minus_first"].items()
  ]
  config = preset.config
  head = [f"N = {n}" for n in BUDGETS]
  return (
    f"# {preset.about}\n\n"
    f"{config.steps} steps of {config.sampling.num_rollouts} sequences, learning rate "
    f"{config.optimizer.learning_rate:g}, KL coefficient {config.objective.kl_coefficient:g}, "
    f"seeds {', '.join(map(str, preset.seeds))}; expected best of N from "
    f"{config.evaluation.num_samples} samples, mean over seeds.\n\n"
    f"{markdown_table(['rule', *head, 'KL'], rows)}\n\n"
    f"## Minus {preset.rules[0]}{', 95 % interval over seeds' if several else ''}\n\n"
    f"{markdown_table(['rule', *head], differences)}\n\n"
    "![distribution of hydrophobicity and best of N](proteins.png)\n"
  )


def _draw(path: pathlib.Path, found: Mapping[str, Any]) -> None:
  figure = new_figure(11, 4)
  left, right = figure.subplots(1, 2)
  centres = (np.array(found["bins"][1:]) + np.array(found["bins"][:-1])) / 2
  styles = line_styles(found["best_of_n"])
  for name, seeds in found["best_of_n"].items():
    left.plot(centres, found["histogram"][name], **styles[name], label=name.split(",")[0])
    right.plot(found["budgets"], np.mean(seeds, axis=0), marker="o", markersize=3, **styles[name])
  left.set(xlabel="share of hydrophobic residues", ylabel="share of sequences")
  left.legend(frameon=False, fontsize=6)
  right.set(xlabel="N", ylabel="expected best of N", xscale="log")
  right.set_xscale("log", base=2)
  save_figure(figure, path)
