"""Tables of the results that are stored under `experiments/results`, in Markdown."""

from __future__ import annotations

import csv
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tea_jax.evaluation.bootstrap import seed_interval
from tea_jax.evaluation.report_tables import markdown_table
from tea_jax.studies.alignment.estimators import PUBLISHED_ALIGNMENT, PUBLISHED_SIZES
from tea_jax.studies.kl_frontier.report import load_frontier, noise_table, share_table
from tea_jax.studies.searches import summary_table
from tea_jax.studies.toy_search import toy_table

RESULTS = pathlib.Path(__file__).parent / "results"
BUDGETS = (1, 8, 64, 128)
HEADER = ["", *(f"best of {n}" for n in BUDGETS)]
HALF = "tea:tail_fraction=0.5"
WEAKER = ("grpo, KL coefficient 1.4", "grpo, KL coefficient 1")


def stored(name: str) -> dict[str, Any]:
  return json.loads((RESULTS / f"{name}.json").read_text())


def rows_of(name: str) -> list[dict[str, str]]:
  with open(RESULTS / f"{name}.csv") as file:
    return list(csv.DictReader(file))


def at_budgets(results: Mapping[str, Any], values: Any) -> np.ndarray:
  return np.asarray(values)[..., [results["budgets"].index(n) for n in BUDGETS]]


def frontier(results: Mapping[str, Any], policy: str) -> list[str]:
  return [f"{v:.2f}" for v in at_budgets(results, results["frontier"][policy]["estimate"])]


def intervals(results: Mapping[str, Any], paired: Mapping[str, Any]) -> list[str]:
  columns = [at_budgets(results, paired[key]) for key in ("estimate", "low", "high")]
  return [interval(*column) for column in zip(*columns)]


def interval(estimate: float, low: float, high: float) -> str:
  return f"{estimate:+.2f} [{low:+.2f}, {high:+.2f}]"


def over_runs(values: Any) -> list[str]:
  """Interval of the mean of `[runs, budgets]`."""
  mean = seed_interval(np.asarray(values))
  return [interval(*column) for column in zip(mean.estimate, mean.low, mean.high)]


def by_seed(results: Mapping[str, Any], policy: str, baseline: str = "grpo") -> np.ndarray:
  return at_budgets(results, results["difference_by_seed"][baseline][policy]["seeds"])


def each_run(values: np.ndarray) -> list[str]:
  return [" ".join(f"{v:+.2f}" for v in column) for column in values.T]


def last_kl(results: Mapping[str, Any], policy: str) -> str:
  return f"{np.mean(results['kl_last_10_steps'][policy]):.2f}"


def quickstart() -> str:
  rows = []
  runs = ("results", "older_cores", "quarter_tail_faster_cores", "quarter_tail")
  machines = ("EPYC, AVX-512", "older EPYC", "EPYC, AVX-512", "older EPYC")
  for name, machine in zip(runs, machines, strict=True):
    results = stored(f"quickstart/{name}")
    tea = next(policy for policy in results["frontier"] if policy.startswith("tea"))
    if name == "results":
      rows.append(["base", machine, *frontier(results, "base"), ""])
    gain = intervals(results, results["difference"]["grpo"][tea])[-1]
    rows.append([tea, machine, *frontier(results, tea), gain])
    rows.append(["grpo", machine, *frontier(results, "grpo"), ""])
  return markdown_table(["policy", "two cores of", *HEADER[1:], "tea - grpo at 128"], rows)


def claim() -> str:
  results = stored("quickstart-3seeds/half_tail_six_seeds")
  ahead = intervals(results, results["difference_by_seed"]["grpo"][HALF])[-1]
  return (
    f"**Does TEA beat GRPO?** With the same KL penalty, yes: {ahead} at the best of 128\n"
    f"over six pairs of runs. At the same KL to the base model they are level: {same_kl()[-1]}.\n"
    f"In small exact worlds TEA ends at {shares('tea 1/2')} % of the gain attainable at its\n"
    f"KL, GRPO at {shares('grpo')} %."
  )


def shares(rule: str) -> str:
  """Range of a rule's share of the attainable gain at the same KL, over worlds and KLs."""
  results, config = load_frontier(RESULTS / "kl_frontier" / "results.json")
  every = [world.share(rule, kl) for world in results.values() for kl in config.targets]
  known = [100 * share for share in every if share is not None]
  return f"{min(known):.0f} to {max(known):.0f}"


def same_kl() -> list[str]:
  """TEA less GRPO at TEA's KL, GRPO interpolated over its coefficients, linear in log KL."""
  results = stored("quickstart-3seeds/half_tail_six_seeds")
  kl, ahead = results["kl_last_10_steps"], []
  for seed, tea in enumerate(by_seed(results, HALF)):
    gains = np.array([np.zeros(len(BUDGETS)), *(by_seed(results, p)[seed] for p in WEAKER)])
    spent = np.log([kl[policy][seed] for policy in ("grpo", *WEAKER)])
    at_teas = np.log(kl[HALF][seed])
    ahead.append([t - np.interp(at_teas, spent, gain) for t, gain in zip(tea, gains.T)])
  return over_runs(ahead)


def half_tail() -> str:
  results = stored("quickstart-3seeds/half_tail_six_seeds")
  both = f"{HALF}, KL coefficient 1.4"
  rows = [
    [policy, *frontier(results, policy), last_kl(results, policy)]
    for policy in ("grpo", HALF, WEAKER[0], both, WEAKER[1])
  ]
  pairs = by_seed(results, HALF)
  rows += [
    ["tea - grpo, each seed", *each_run(pairs), ""],
    ["tea - grpo", *over_runs(pairs), ""],
    ["both with coefficient 1.4", *over_runs(by_seed(results, both, WEAKER[0])), ""],
    ["tea - grpo at the same KL", *same_kl(), ""],
  ]
  return markdown_table([*HEADER, "KL to the base"], rows)


def pairs_of_runs(runs: Mapping[str, str], policy: str) -> str:
  """TEA less GRPO: every pair of runs, and the mean over all."""
  rows, pairs = [], []
  for label, name in runs.items():
    pairs.append(by_seed(stored(f"quickstart-3seeds/{name}"), policy))
    rows.append([label, *each_run(pairs[-1])])
    rows.append([f"their mean ({len(pairs[-1])})", *over_runs(pairs[-1])])
  together = np.concatenate(pairs)
  return markdown_table(HEADER, [*rows, [f"mean of all {len(together)}", *over_runs(together)]])


def half_tail_pairs() -> str:
  runs = {
    "H200, seeds 3 to 8": "half_tail_six_seeds",
    "two older cores, seeds 0 to 2": "half_tail",
    "two newer cores, seeds 0 to 2": "half_tail_newer_cores",
  }
  return pairs_of_runs(runs, HALF)


def quarter_tail_pairs() -> str:
  runs = {"H200, seeds 0 to 5": "six_seeds", "two cores, seeds 0 to 2": "two_cores"}
  return pairs_of_runs(runs, "tea")


def quarter_tail_rules() -> str:
  results, rows = stored("quickstart-3seeds/results"), []
  for policy in results["frontier"]:
    paired = results["difference"]["grpo"].get(policy)
    gains = intervals(results, paired)[2:] if paired else ["", ""]
    rows.append([policy, *frontier(results, policy), *gains])
  return markdown_table(["policy", *HEADER[1:], "to grpo at 64", "to grpo at 128"], rows)


def other_rules() -> str:
  results = stored("quickstart-3seeds/half_tail_other_rules")
  rows = [
    [policy, *frontier(results, policy), last_kl(results, policy)] for policy in results["frontier"]
  ]
  for rule in ("subset_tea", "tail_influence"):
    pairs = by_seed(results, f"{rule}:tail_fraction=0.5", HALF)
    rows.append([f"{rule} - tea, each seed", *each_run(pairs), ""])
    rows.append([f"{rule} - tea", *over_runs(pairs), ""])
  return markdown_table([*HEADER, "KL to the base"], rows)


def tail_fractions() -> str:
  results = stored("quickstart-3seeds/tail_fractions")
  rows = [
    [fraction, *frontier(results, policy)]
    for fraction, policy in (("1/8", "tea_0.125"), ("1/2", "tea_0.5"))
  ]
  rows.append(["1/2 less 1/8", *intervals(results, results["difference"]["tea_0.125"]["tea_0.5"])])
  return markdown_table(["tail fraction", *HEADER[1:]], rows)


def without_penalty() -> str:
  rows = [list(row.values()) for row in rows_of("quickstart-3seeds/without_penalty")]
  header = ["prompts a step", "learning rate", "steps", "grpo", "tea", "blended_influence"]
  return markdown_table([*header, "tail_influence"], rows)


def alignment() -> str:
  return cosines("oracle_alignment_smollm2/alignment", "quickstart", published=True)


def synthetic_alignment() -> str:
  return cosines("oracle_alignment_synthetic/alignment", "gaussian")


def cosines(name: str, pool: str, *, published: bool = False) -> str:
  """Mean and standard error by rule and group size; the largest mean of a column in bold."""
  rows = [row for row in rows_of(name) if row["pool"] == pool]
  sizes = sorted({int(row["num_rollouts"]) for row in rows})
  of = {(row["rule"], int(row["num_rollouts"])): row for row in rows}
  best = {m: max(float(r["mean"]) for r in rows if int(r["num_rollouts"]) == m) for m in sizes}

  def cell(rule: str, size: int) -> str:
    if (rule, size) not in of:
      return "-"
    mean, error = (float(of[rule, size][key]) for key in ("mean", "standard_error"))
    text = f"{mean:.3f} ({error:.3f})"
    return f"**{text}**" if mean == best[size] else text

  table = []
  for rule in dict.fromkeys(row["rule"] for row in rows):
    table.append([rule, *(cell(rule, size) for size in sizes)])
    if published and rule in PUBLISHED_ALIGNMENT:
      values: dict[int, float] = dict(zip(PUBLISHED_SIZES, PUBLISHED_ALIGNMENT[rule]))
      table.append(["*published*", *(f"*{values[size]:.3f}*" for size in sizes)])
  return markdown_table(["rule", *(f"m = {size}" for size in sizes)], table)


def shapes() -> str:
  rows = rows_of("oracle_alignment_synthetic/alignment")
  sizes, rules = (16, 32, 64, 128, 256), ("tea", "tail_influence", "blended_influence")
  mean = {(r["pool"], r["rule"], int(r["num_rollouts"])): float(r["mean"]) for r in rows}
  table = [
    [pool, rule, *(f"{mean[pool, rule, size]:.3f}" for size in sizes)]
    for pool in dict.fromkeys(row["pool"] for row in rows)
    for rule in rules
  ]
  return markdown_table(["rewards", "rule", *(f"m = {size}" for size in sizes)], table)


def synthetic_diagnostic() -> str:
  rows = []
  for row in rows_of("synthetic_diagnostic/table"):
    size = int(row["num_rollouts"])
    resolved = row["bias_resolved"] == "True"
    bias = f"{float(row['bias']):.3g}" if resolved else f"< {float(row['bias_upper_limit']):.2g}"
    variance = f"{float(row['variance']) * size:.3g}"
    crossover = row["crossover"]
    if row["bias_published"]:
      bias += f" ({float(row['bias_published']):.3g})"
      variance += f" ({float(row['variance_published']) * size:.3g})"
    if crossover not in ("", "never"):
      published = row["crossover_published"]
      crossover = f"{float(crossover):.0f}" + (f" ({float(published):.0f})" if published else "")
    rows.append([ESTIMATORS[row["estimator"]], str(size), bias, variance, crossover])
  return markdown_table(["estimator", "m", "bias", "variance * m", "B*"], rows)


ESTIMATORS = {
  "tea": "TEA",
  "tail_influence": "tail influence",
  "prefix": "Prefix-TEA, main",
  "prefix_larger": "Prefix-TEA, larger J",
  "subset_averaged": "subset-averaged, 16 orders",
}


def kl_frontier_share() -> str:
  return share_table(*load_frontier(RESULTS / "kl_frontier" / "results.json"))


def kl_frontier_noise() -> str:
  return noise_table(load_frontier(RESULTS / "kl_frontier" / "results.json")[0])


def toy_gain() -> str:
  return toy_table(stored("search_toy/toy"), "gain")


def toy_regret() -> str:
  return toy_table(stored("search_toy/toy"), "regret")


def search_smollm2() -> str:
  return summary_table(stored("search_smollm2/results"))


TABLES: dict[str, Callable[[], str]] = {
  function.__name__: function
  for function in (
    claim,
    quickstart,
    half_tail,
    half_tail_pairs,
    other_rules,
    quarter_tail_pairs,
    quarter_tail_rules,
    tail_fractions,
    without_penalty,
    kl_frontier_share,
    kl_frontier_noise,
    alignment,
    synthetic_alignment,
    shapes,
    synthetic_diagnostic,
    toy_gain,
    toy_regret,
    search_smollm2,
  )
}
