"""What `experiments.search` runs: its flags and presets."""

from __future__ import annotations

import dataclasses
from typing import Literal

from tea_jax.runs import groups
from tea_jax.runs.reward import RewardConfig
from tea_jax.studies.searches import METHODS


@dataclasses.dataclass(frozen=True)
class SearchConfig:
  """What is searched, and how.

  Attributes:
    methods: searches to run; best_of_n always is.
    budgets: N.
    num_prompts: held-out prompts.
    state_length: tokens of a state.
    group_size: rollouts generated together for a node.
    rows_per_call: rollouts decoded together.
    states: cut from the "best" pilots, or from the "first".
    law, tail_fraction, coefficient: of scaling_law_search, see `predict_best_of_n`.
    server: address of a completions server that generates instead of the policy; none if empty.
    server_model: name that the server knows its model by.
    verifier: reward that says whether an answer is right, for rm@1 and pass@N; none if empty.
    seed: of the sampling.
    output: folder of the rollouts and the report.
    figures: draw the figure (needs matplotlib).
  """

  methods: tuple[str, ...] = tuple(METHODS)
  budgets: tuple[int, ...] = (100, 300)
  num_prompts: int = 16
  state_length: int = 8
  group_size: int = 8
  rows_per_call: int = 96
  states: Literal["best", "first"] = "best"
  law: Literal["gaussian_tail", "pareto_tail", "blend"] = "gaussian_tail"
  tail_fraction: float = 0.2
  coefficient: Literal["expected_maximum", "quantile"] = "expected_maximum"
  server: str = ""
  server_model: str = ""
  verifier: str = ""
  seed: int = 0
  output: str = "runs/search"
  figures: bool = True
  model: groups.PolicyConfig = dataclasses.field(default_factory=groups.PolicyConfig)
  data: groups.DataConfig = dataclasses.field(default_factory=groups.DataConfig)
  reward: RewardConfig = dataclasses.field(default_factory=RewardConfig)
  sampling: groups.RolloutConfig = dataclasses.field(default_factory=groups.RolloutConfig)
  mesh: groups.MeshConfig = dataclasses.field(default_factory=groups.MeshConfig)


# The others take their rollouts from the same pool: `--methods` with the same output goes on.
_QUICKSTART = SearchConfig(
  methods=("best_of_n", "scaling_law_search"),
  data=groups.DataConfig(prompts="openers", chat=False, max_prompt_length=24),
  sampling=groups.RolloutConfig(max_completion_length=32),
)
SEARCH_PRESETS = {
  "quickstart": _QUICKSTART,
  "quickstart-full": dataclasses.replace(
    _QUICKSTART, methods=tuple(METHODS), num_prompts=64, budgets=(100, 300, 500)
  ),
  # Prompts: a JSONL file of AMC and AIME problems with `prompt` and `answer`.
  "slg-paper": SearchConfig(
    budgets=(100, 200, 300, 500),
    num_prompts=90,
    state_length=100,
    verifier="math",
    model=groups.PolicyConfig(name="meta-llama/Llama-3.2-1B-Instruct", compute_dtype="bfloat16"),
    data=groups.DataConfig(prompts="amc_aime.jsonl", max_prompt_length=1024),
    reward=RewardConfig(functions=("Skywork/Skywork-Reward-V2-Llama-3.1-8B",)),
    sampling=groups.RolloutConfig(
      max_completion_length=1000, top_p=0.9, allow_truncated_sampling=True
    ),
  ),
}
