"""Which stored results make which table of the pages."""

from __future__ import annotations

import csv
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tea_jax.evaluation.report_tables import markdown_table
from tea_jax.studies.alignment.stored import cosine_table, pools_table
from tea_jax.studies.compute_aligned import compared
from tea_jax.studies.compute_aligned.answer_curves import Metric, curve_table, difference_table
from tea_jax.studies.compute_aligned.stored import protein_table
from tea_jax.studies.gaussian_tail.stored import diagnostic_table
from tea_jax.studies.kl_frontier.report import load_frontier, noise_table, share_table
from tea_jax.studies.scaling_laws.measured import error_table
from tea_jax.studies.searches import summary_table
from tea_jax.studies.stored_comparison import StoredComparison, each_run, over_runs
from tea_jax.studies.toy_search import toy_table

RESULTS = pathlib.Path(__file__).parent / "results"
KL_FRONTIER = RESULTS / "kl_frontier" / "results.json"
SYNTHETIC_ALIGNMENT = RESULTS / "oracle_alignment_synthetic" / "alignment.csv"
BUDGETS = (1, 8, 64, 128)
HEADER = ["", *(f"best of {n}" for n in BUDGETS)]
HALF = "tea:tail_fraction=0.5"
# The rules of the preset `cat-protein`, as the door calls them.
DOOR = {
  "base": "before",
  "grpo:normalize=true": "GRPO",
  "cat_best_of_n:budget=8,quantile=tracked,weight_normalization=batch": "CAT, N = 8",
  "tea:budget=64": "TEA, N = 64",
  "max_at_k:k=16,normalize=true": "max@16",
}
# Compared with GRPO one by one: Pass@4, Pass@16 by either p, votes of 8.
MAIN_RULES = (*compared.PASS_RULES[1:], compared.VOTE_RULES[-1], compared.PAPER_PASS_RULES[-1])
WEAKER = ("grpo, KL coefficient 1.4", "grpo, KL coefficient 1")


def stored(name: str) -> StoredComparison:
  return StoredComparison(RESULTS / f"{name}.json", BUDGETS)


def answer_table(
  name: str, metric: Metric = "pass", *, minus: bool = False, shown: Sequence[str] = ()
) -> str:
  """pass@k or maj@k of stored answers, or differences to the first, of those `shown` (all)."""
  found = read(name)
  kept = found.get(metric, found)  # of one metric or of several
  if minus:
    differences = kept["minus_first"]
    differences = {rule: differences[rule] for rule in shown or differences}
    return difference_table(differences, found["budgets"], metric=metric)
  return curve_table(kept["curves"], found["budgets"], metric=metric)


def searches(name: str) -> dict[str, Any]:
  return read(f"search_{name}")


def read(name: str) -> dict[str, Any]:
  return json.loads((RESULTS / f"{name}.json").read_text())


def last_kl(results: StoredComparison, policy: str) -> str:
  return f"{np.mean(results.last_kl(policy)):.2f}"


def quickstart() -> str:
  rows = []
  runs = ("results", "older_cores", "quarter_tail_faster_cores", "quarter_tail")
  machines = ("EPYC, AVX-512", "older EPYC", "EPYC, AVX-512", "older EPYC")
  for name, machine in zip(runs, machines, strict=True):
    results = stored(f"quickstart/{name}")
    tea = next(policy for policy in results.policies if policy.startswith("tea"))
    if name == "results":
      rows.append(["base", machine, *results.frontier("base"), ""])
    gain = (results.difference(tea, "grpo") or [""])[-1]
    rows.append([tea, machine, *results.frontier(tea), gain])
    rows.append(["grpo", machine, *results.frontier("grpo"), ""])
  return markdown_table(["policy", "two cores of", *HEADER[1:], "tea - grpo at 128"], rows)


def claim() -> str:
  results = stored("quickstart-3seeds/half_tail_six_seeds")
  ahead = over_runs(results.by_seed(HALF, "grpo"))[-1]
  return (
    f"**Does TEA beat GRPO?** With the same KL penalty, yes: {ahead} at the best of 128\n"
    f"over six pairs of runs. At the same KL to the base model they are level: {same_kl()[-1]}.\n"
    f"In small exact worlds TEA ends at {shares('tea 1/2')} % of the gain attainable at its\n"
    f"KL, GRPO at {shares('grpo')} %."
  )


def shares(rule: str) -> str:
  """Range of a rule's share of the attainable gain at the same KL, over worlds and KLs."""
  results, config = load_frontier(KL_FRONTIER)
  every = [world.share(rule, kl) for world in results.values() for kl in config.targets]
  known = [100 * share for share in every if share is not None]
  return f"{min(known):.0f} to {max(known):.0f}"


def same_kl() -> list[str]:
  """TEA less GRPO at TEA's KL, GRPO interpolated over its coefficients, linear in log KL."""
  results = stored("quickstart-3seeds/half_tail_six_seeds")
  ahead = []
  for seed, tea in enumerate(results.by_seed(HALF, "grpo")):
    gains = [results.by_seed(policy, "grpo")[seed] for policy in WEAKER]
    gains = np.array([np.zeros(len(BUDGETS)), *gains])
    spent = np.log([results.last_kl(policy)[seed] for policy in ("grpo", *WEAKER)])
    at_teas = np.log(results.last_kl(HALF)[seed])
    ahead.append([t - np.interp(at_teas, spent, gain) for t, gain in zip(tea, gains.T)])
  return over_runs(np.array(ahead))


def half_tail() -> str:
  results = stored("quickstart-3seeds/half_tail_six_seeds")
  both = f"{HALF}, KL coefficient 1.4"
  rows = [
    [policy, *results.frontier(policy), last_kl(results, policy)]
    for policy in ("grpo", HALF, WEAKER[0], both, WEAKER[1])
  ]
  pairs = results.by_seed(HALF, "grpo")
  rows += [
    ["tea - grpo, each seed", *each_run(pairs), ""],
    ["tea - grpo", *over_runs(pairs), ""],
    ["both with coefficient 1.4", *over_runs(results.by_seed(both, WEAKER[0])), ""],
    ["tea - grpo at the same KL", *same_kl(), ""],
  ]
  return markdown_table([*HEADER, "KL to the base"], rows)


def pairs_of_runs(runs: Mapping[str, str], policy: str) -> str:
  """A policy less GRPO: every pair of runs, and the mean over all."""
  rows, pairs = [], []
  for label, name in runs.items():
    pairs.append(stored(f"quickstart-3seeds/{name}").by_seed(policy, "grpo"))
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
  for policy in results.policies:
    gains = (results.difference(policy, "grpo") or ["", ""])[-2:]
    rows.append([policy, *results.frontier(policy), *gains])
  return markdown_table(["policy", *HEADER[1:], "to grpo at 64", "to grpo at 128"], rows)


def other_rules() -> str:
  results = stored("quickstart-3seeds/half_tail_other_rules")
  rows = [
    [policy, *results.frontier(policy), last_kl(results, policy)] for policy in results.policies
  ]
  for rule in ("subset_tea", "tail_influence"):
    pairs = results.by_seed(f"{rule}:tail_fraction=0.5", HALF)
    rows.append([f"{rule} - tea, each seed", *each_run(pairs), ""])
    rows.append([f"{rule} - tea", *over_runs(pairs), ""])
  return markdown_table([*HEADER, "KL to the base"], rows)


def tail_fractions() -> str:
  results = stored("quickstart-3seeds/tail_fractions")
  rows = [
    [fraction, *results.frontier(policy)]
    for fraction, policy in (("1/8", "tea_0.125"), ("1/2", "tea_0.5"))
  ]
  rows.append(["1/2 less 1/8", *(results.difference("tea_0.5", "tea_0.125") or [])])
  return markdown_table(["tail fraction", *HEADER[1:]], rows)


def at_one_kl() -> str:
  """Runs drawn back to one KL: the frontier, and what of the gain is shift and what widening."""
  budgets = (1, 8, 64)
  results = StoredComparison(RESULTS / "same_kl_smollm2" / "results.json", budgets)
  base, rows = results.values("base"), []
  for policy in results.policies:
    values = results.values(policy)
    shift, gain = values[0] - base[0], values[-1] - base[-1]
    parts = ["", ""] if policy == "base" else [f"{shift:+.2f}", f"{gain - shift:+.2f}"]
    rows.append([policy, *results.frontier(policy), *parts])
  pairs = results.by_seed("tea", "grpo")
  widening = pairs[:, -1] - pairs[:, 0]
  rows.append(["tea - grpo, each seed", *each_run(np.c_[pairs, pairs[:, 0], widening])])
  rows.append(["tea - grpo", *over_runs(np.c_[pairs, pairs[:, 0], widening])])
  header = ["", *(f"best of {n}" for n in budgets), "of it shift", "of it widening"]
  return markdown_table(header, rows)


def inside_trl() -> str:
  budgets = (1, 8, 64)
  results = StoredComparison(RESULTS / "openers_trl" / "results.json", budgets)
  rows = [[policy, *results.frontier(policy)] for policy in results.policies]
  rows.append(["tea - grpo", *(results.difference("tea", "grpo") or [])])
  return markdown_table(["trained in TRL by", *(f"best of {n}" for n in budgets)], rows)


def without_penalty() -> str:
  with open(RESULTS / "quickstart-3seeds" / "without_penalty.csv") as file:
    rows = list(csv.reader(file))[1:]
  header = ["prompts a step", "learning rate", "steps", "grpo", "tea", "blended_influence"]
  return markdown_table([*header, "tail_influence"], rows)


TABLES: dict[str, Callable[[], str]] = {
  function.__name__: function
  for function in (
    claim,
    quickstart,
    half_tail,
    half_tail_pairs,
    at_one_kl,
    inside_trl,
    other_rules,
    quarter_tail_pairs,
    quarter_tail_rules,
    tail_fractions,
    without_penalty,
  )
} | {
  "kl_frontier_share": lambda: share_table(*load_frontier(KL_FRONTIER)),
  "kl_frontier_noise": lambda: noise_table(load_frontier(KL_FRONTIER)[0]),
  "alignment": lambda: cosine_table(
    RESULTS / "oracle_alignment_smollm2" / "alignment.csv", "quickstart", published=True
  ),
  "synthetic_alignment": lambda: cosine_table(SYNTHETIC_ALIGNMENT, "gaussian"),
  "shapes": lambda: pools_table(
    SYNTHETIC_ALIGNMENT, ("tea", "tail_influence", "blended_influence"), (16, 32, 64, 128, 256)
  ),
  "synthetic_diagnostic": lambda: diagnostic_table(RESULTS / "synthetic_diagnostic" / "table.csv"),
  "proteins": lambda: protein_table(read("cat_protein/proteins"), labels=DOOR),
  "protein_rules": lambda: protein_table(
    read("cat_protein/proteins"), against="grpo:normalize=true"
  ),
  "proteins_300": lambda: protein_table(
    read("cat_protein/three_hundred_steps"), against="grpo:normalize=true"
  ),
  "proteins_same_kl": lambda: protein_table(read("cat_protein/same_kl")),
  "proteins_conditional": lambda: protein_table(
    read("cat_protein/conditional"), against="grpo:normalize=true", at=16
  ),
  "small_sft": lambda: answer_table("cat_small/sft"),
  "small_sft_minus": lambda: answer_table("cat_small/sft", minus=True),
  "small_votes": lambda: answer_table("cat_small/majority", "majority"),
  "small_votes_minus": lambda: answer_table("cat_small/majority", "majority", minus=True),
  "small_rl_pass": lambda: answer_table("cat_small/rewarded"),
  "small_rl_pass_minus": lambda: answer_table("cat_small/rewarded", minus=True, shown=MAIN_RULES),
  "small_rl_majority": lambda: answer_table("cat_small/rewarded", "majority"),
  "small_rl_majority_minus": lambda: answer_table(
    "cat_small/rewarded", "majority", minus=True, shown=MAIN_RULES
  ),
  "small_warm_ups": lambda: answer_table("cat_small/warm_ups"),
  "small_warm_ups_minus": lambda: answer_table("cat_small/warm_ups", minus=True),
  "supervised_sums": lambda: answer_table("cat_sft/branches"),
  "supervised_sums_minus": lambda: answer_table("cat_sft/branches", minus=True),
  "majority_sums": lambda: answer_table("cat_majority/branches", "majority"),
  "majority_sums_minus": lambda: answer_table("cat_majority/branches", "majority", minus=True),
  "rewarded_sums_pass": lambda: answer_table("cat_rl/rewarded", "pass"),
  "rewarded_sums_pass_minus": lambda: answer_table("cat_rl/rewarded", "pass", minus=True),
  "rewarded_sums_majority": lambda: answer_table("cat_rl/rewarded", "majority"),
  "law_errors": lambda: error_table(read("scaling_law_smollm2/results")),
  "toy_gain": lambda: toy_table(searches("toy/toy"), "gain"),
  "toy_regret": lambda: toy_table(searches("toy/toy"), "regret"),
  "search_smollm2": lambda: summary_table(searches("smollm2/results")),
  "search_smollm2_64": lambda: summary_table(searches("smollm2_64/results")),
}
